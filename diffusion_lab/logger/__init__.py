"""Loggers of a run: CSV, TensorBoard and Weights & Biases."""
