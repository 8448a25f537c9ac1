"""How good samples are: Fréchet distances between image features, and distances between point sets.

Nothing here is ever a submodule of a Model: extractors and accumulators are plain Python objects, so that
they never enter a `state_dict`, an EMA copy or a precision cast of the model.
"""

from diffusion_lab.metric.classifier import ClassifierFeatures
from diffusion_lab.metric.features import Extractor, metric_name, sample_count, to_uint8
from diffusion_lab.metric.frechet import FeatureMoments, Moments, frechet_distance, moments
from diffusion_lab.metric.inception import InceptionFeatures
from diffusion_lab.metric.two_sample import energy_distance, mode_weights, sliced_wasserstein

__all__ = [
    "ClassifierFeatures",
    "Extractor",
    "FeatureMoments",
    "InceptionFeatures",
    "Moments",
    "energy_distance",
    "frechet_distance",
    "metric_name",
    "mode_weights",
    "moments",
    "sample_count",
    "sliced_wasserstein",
    "to_uint8",
]
