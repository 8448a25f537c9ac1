"""Judging a model: samples kept on disk, their features, measures with protocol, likelihood; shared by all ranks."""

from diffusion_lab.evaluation.chunks import Chunks, Rows
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import score_likelihood
from diffusion_lab.evaluation.quality import MEASURES, Features, Judge, Record, Reference, chart_name
from diffusion_lab.evaluation.series import Series, share

__all__ = [
    "MEASURES",
    "Chunks",
    "Evaluator",
    "Features",
    "Judge",
    "Record",
    "Reference",
    "Rows",
    "Series",
    "chart_name",
    "score_likelihood",
    "share",
]
