"""Sample quality: distances between image features (FID, KID, precision and recall, ...) and between point sets.

Extractors and accumulators are plain Python objects, not modules, so that they are never part of a model's
`state_dict`, EMA copy or precision cast.
"""

from diffusion_lab.metric.classifier import ClassifierFeatures
from diffusion_lab.metric.features import Extractor, sample_count, to_uint8
from diffusion_lab.metric.frechet import FrechetAtInfinity, frechet_at_infinity, frechet_distance
from diffusion_lab.metric.inception import InceptionFeatures
from diffusion_lab.metric.inception_score import InceptionScore, inception_score
from diffusion_lab.metric.kernel import KernelDistance, kernel_distance
from diffusion_lab.metric.moments import FeatureMoments, Moments, moments
from diffusion_lab.metric.neighbours import NeighbourScores, neighbour_scores
from diffusion_lab.metric.network_features import NetworkFeatures
from diffusion_lab.metric.statistics import Statistics
from diffusion_lab.metric.two_sample import energy_distance, sliced_wasserstein

__all__ = [
    "ClassifierFeatures",
    "Extractor",
    "FeatureMoments",
    "FrechetAtInfinity",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "NeighbourScores",
    "NetworkFeatures",
    "Statistics",
    "energy_distance",
    "frechet_at_infinity",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "moments",
    "neighbour_scores",
    "sample_count",
    "sliced_wasserstein",
    "to_uint8",
]
