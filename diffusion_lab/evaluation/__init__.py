"""Evaluation of a model, distributed over ranks: samples on disk, their features, metrics with protocol, likelihood."""

from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import score_likelihood
from diffusion_lab.evaluation.sample_store import SampleStore, compute_missing
from diffusion_lab.evaluation.scorer import MEASURES, Features, Record, Reference, Scorer, chart_name

__all__ = [
    "MEASURES",
    "ChunkedArray",
    "Evaluator",
    "Features",
    "Scorer",
    "Record",
    "Reference",
    "Rows",
    "SampleStore",
    "chart_name",
    "score_likelihood",
    "compute_missing",
]
