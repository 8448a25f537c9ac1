"""Judging a model: samples kept on disk, their features, measures with protocol, likelihood; shared by all ranks."""

from diffusion_lab.evaluation.chunked_array import ChunkedArray, Rows
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import score_likelihood
from diffusion_lab.evaluation.sample_store import SampleStore, share
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
    "share",
]
