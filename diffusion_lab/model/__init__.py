"""Models: one LightningModule per method, which connects network, process, loss and sampler; and classifiers."""

from diffusion_lab.model.base import Model
from diffusion_lab.model.classifier import Classifier
from diffusion_lab.model.ddpm import DDPM
from diffusion_lab.model.labels import Label, Labels
from diffusion_lab.model.ncsn import NCSN, NCSNv2
from diffusion_lab.model.rehearsal import rehearse
from diffusion_lab.model.score import ScoreMatching
from diffusion_lab.model.score_sde import ScoreSDE
from diffusion_lab.model.training import Training

__all__ = [
    "DDPM",
    "NCSN",
    "Classifier",
    "Label",
    "Labels",
    "Model",
    "NCSNv2",
    "ScoreMatching",
    "ScoreSDE",
    "Training",
    "rehearse",
]
