"""Callbacks: EMA, checkpoints, evaluation, images, progress and logged values."""

from diffusion_lab.callback.accuracy import Accuracy
from diffusion_lab.callback.checkpoint import Checkpoint
from diffusion_lab.callback.conclusion import Conclusion
from diffusion_lab.callback.ema import EMA
from diffusion_lab.callback.evaluation import Evaluation
from diffusion_lab.callback.interrupt import Interrupt
from diffusion_lab.callback.monitor import Monitor
from diffusion_lab.callback.non_finite_guard import NonFiniteGuard
from diffusion_lab.callback.page import Page
from diffusion_lab.callback.pitfall import ModeWeights, ScoreError
from diffusion_lab.callback.posthoc_ema import PostHocEMA
from diffusion_lab.callback.progress import Progress
from diffusion_lab.callback.samples import Samples
from diffusion_lab.callback.seed import RankSeed

__all__ = [
    "EMA",
    "Accuracy",
    "Checkpoint",
    "Conclusion",
    "Evaluation",
    "NonFiniteGuard",
    "Interrupt",
    "ModeWeights",
    "Monitor",
    "Page",
    "PostHocEMA",
    "Progress",
    "RankSeed",
    "Samples",
    "ScoreError",
]
