"""Guided denoisers against closed forms: a Gaussian mixture whose classes are its components, for every process."""

from __future__ import annotations

import pytest
import torch
from test_sampler_verification import failures

from diffusion_lab.guidance import Autoguidance, ClassifierFree, Guided
from diffusion_lab.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM, Labels, rehearse
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import TO_EPS
from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import DDIM, Sampler
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.verification import mixture
from diffusion_lab.verification.guidance import check_field, classifier_free
from diffusion_lab.verification.mixture import ClassScores, class_denoiser

TARGET = mixture.gmm2d()
PROCESSES = {
    "vp": VP(Linear()),
    "subvp": SubVP(Cosine()),
    "ve": VE(Geometric(0.01, 20.0)),
    "ddpm": DiscreteProcess(Linear(), 1000),
    "ncsn": DiscreteProcess(Geometric(0.01, 20.0), 12),
}
CLASSES = 3


def denoiser_of(process, output="eps", target=TARGET):
    return class_denoiser(target, process, output)


def model_of_points(labels=None):
    network = MLP(2, classes=labels and labels.classes)
    return DDPM(
        network, Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(2,), grey_levels=None, labels=labels
    )


def points(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=generator)
    return z, torch.arange(count) % CLASSES


def times_of(process):
    return process.timesteps(7 if process.levels is None else min(7, process.levels))


def worst(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_marginal_score_is_the_posterior_mean_of_class_scores_at_every_time(process):
    denoiser, (z, _) = denoiser_of(process), points()
    for t in times_of(process):
        alpha, sigma = process.alpha_sigma(t)
        x = (alpha**2 + sigma**2).sqrt() * z
        shares = TARGET.posterior(x, alpha, sigma)
        own = [denoiser.given(label=torch.full((len(x),), k))(x, t).score for k in range(CLASSES)]
        mean = sum(shares[:, k, None, None, None] * own[k] for k in range(CLASSES))
        assert worst(denoiser(x, t).score, mean) < 1e-10
        assert worst(denoiser.given()(x, t).score, TARGET.score(x, alpha, sigma)) < 1e-10


@pytest.mark.parametrize("output", TO_EPS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_guided_field_matches_its_closed_form_at_every_time(process, output):
    """At the scales 0, 1 and 2.5, as a call and as samplers ask for it."""
    assert failures(check_field(classifier_free(ClassifierFree(0.0), process, output), process)) == []


@pytest.mark.parametrize(
    "sampler", [Sampler(DDIM(), steps=9, precision="float64"), ProbabilityFlow()], ids=["ddim", "ode"]
)
def test_samplers_use_a_bound_and_guided_denoiser_like_any_other(sampler):
    process = PROCESSES["vp"]
    denoiser, (z, label) = denoiser_of(process), points()
    class_alone = denoiser_of(process)
    generators = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    shape = (len(z), 2, 1, 1)
    for k in range(CLASSES):  # a mixture of one component, to which nothing needs to be said
        only = mixture.Mixture([1.0], TARGET.m[k : k + 1], TARGET.c[k : k + 1], (2, 1, 1))
        class_alone.network.target = only
        bound = denoiser.given(label=torch.full((len(z),), k))
        wanted = sampler(class_alone.given(label=torch.zeros(len(z), dtype=torch.int64)), shape, generators())
        assert worst(sampler(bound, shape, generators()), wanted) < 1e-4
        assert worst(sampler(ClassifierFree(1.0)(bound), shape, generators()), wanted) < 1e-4
    apart = sampler(ClassifierFree(3.0)(denoiser.given(label=label)), shape, generators())
    assert worst(apart, sampler(denoiser.given(label=label), shape, generators())) > 0.05


def test_recorded_steps_with_guidance_are_the_steps_as_written():
    guided = ClassifierFree(2.0, (0.3, 3.0))(denoiser_of(PROCESSES["ddpm"]).given(label=points()[1]))
    sampler, x = Sampler(DDIM(0.5), steps=20, precision="float64"), points(seed=5)[0]
    seeded = [torch.Generator().manual_seed(2) for _ in range(2)]
    *_, recorded = sampler.trajectory(guided, x, seeded[0])
    assert worst(recorded.x, sampler.as_written(guided, x, seeded[1])) < 1e-12


def test_every_network_evaluation_is_counted_in_the_denoiser():
    process, steps = PROCESSES["ddpm"], 20
    denoiser, weak = denoiser_of(process), denoiser_of(process)
    bound, (x, _) = denoiser.given(label=points()[1]), points()
    sampler = Sampler(DDIM(), steps=steps, precision="float64")
    ratio = (lambda alpha, sigma: sigma / alpha)(*process.alpha_sigma(sampler.timesteps(denoiser)))
    inside = int(((ratio >= 0.3) & (ratio <= 3)).sum())
    assert 0 < inside < steps
    for guidance, calls in (
        (ClassifierFree(1.0), steps),
        (ClassifierFree(0.0), steps),
        (ClassifierFree(2.0), 2 * steps),
        (ClassifierFree(2.0, (0.3, 3.0)), steps + inside),
        (Autoguidance(weak, 2.0), 2 * steps),
    ):
        denoiser.nfe = 0
        sampler(guidance(bound), x.shape, torch.Generator().manual_seed(0))
        assert denoiser.nfe == bound.nfe == calls, guidance
    assert weak.nfe == 0
    bound.nfe = 5
    assert denoiser.nfe == 5


def test_the_interval_is_of_sigma_over_alpha_and_each_sample_has_its_own_time():
    process, low, high = PROCESSES["vp"], 0.2, 4.0
    denoiser, (x, label) = denoiser_of(process), points()
    bound = denoiser.given(label=label)
    t = torch.linspace(0.02, 0.98, len(x), dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(t)
    on = (sigma / alpha >= low) & (sigma / alpha <= high)
    assert on.any() and not on.all()
    got, plain, full = (
        d(x, t).score for d in (ClassifierFree(3.0, (low, high))(bound), bound, ClassifierFree(3.0)(bound))
    )
    assert torch.equal(got[~on], plain[~on]) or worst(got[~on], plain[~on]) < 1e-12
    assert worst(got[on], full[on]) < 1e-12 and worst(full[on], plain[on]) > 1e-2


def test_autoguidance_extrapolates_from_the_weaker_model_at_the_same_label():
    process = PROCESSES["ve"]
    wide = mixture.Mixture(TARGET.w, TARGET.m, TARGET.c * 4, (2, 1, 1))
    denoiser, weak, (x, label) = denoiser_of(process), denoiser_of(process, target=wide), points()
    bound, t = denoiser.given(label=label), torch.tensor(0.4, dtype=torch.float64)
    guided = Autoguidance(lambda: weak, 2.0)(bound)
    own, other = bound(x, t).score, weak.given(label=label)(x, t).score
    assert worst(guided(x, t).score, other + 2 * (own - other)) < 1e-12
    weak.classes = weak.null = None  # an unconditional one is asked without a label
    weak.network.__class__ = type("Marginal", (ClassScores,), {
        "__call__": lambda self, seen, c_noise: ClassScores.__call__(self, seen, c_noise, torch.full((len(seen),), CLASSES)),
    })  # fmt: skip
    marginal = wide.score(x, *process.alpha_sigma(t))
    assert worst(Autoguidance(weak, 2.0)(bound)(x, t).score, marginal + 2 * (own - marginal)) < 1e-9


@pytest.mark.parametrize(
    "weak, what",
    [
        (denoiser_of(PROCESSES["subvp"]), "noise process"),
        (denoiser_of(PROCESSES["ddpm"]), "noise process"),
        (denoiser_of(PROCESSES["vp"], "v"), "parameterization"),
    ],
)
def test_autoguidance_refuses_an_incompatible_weaker_model(weak, what):
    with pytest.raises(ValueError, match=f"its {what}"):
        Autoguidance(weak)(denoiser_of(PROCESSES["vp"]))
    weak = denoiser_of(PROCESSES["vp"])
    weak.classes = 7
    with pytest.raises(ValueError, match="its classes"):
        Autoguidance(weak)(denoiser_of(PROCESSES["vp"]))


@pytest.mark.parametrize(
    "scale, interval",
    [
        (-1, None),
        (float("nan"), None),
        (2, [1]),
        (2, [3, 1]),
        (2, [-1, 1]),
        ("2", None),
        (2, 1.0),
        (2, "ab"),
        (2, (None, 2)),
    ],
)
def test_invalid_scales_and_intervals_are_refused(scale, interval):
    with pytest.raises(ValueError, match=r"(scale|interval)=.* must be"):
        ClassifierFree(scale, interval)


@pytest.mark.parametrize("guidance", ["classifier_free", 2, ClassifierFree, lambda denoiser: 3])
def test_what_is_not_a_guidance_is_refused(guidance):
    with pytest.raises(ValueError, match="is not a guidance: use for example"):
        model_of_points().sample(2, guidance=guidance)


@pytest.mark.parametrize("parts", [(DDIM(), 50), (DDIM,), ("ddim",), (None, 3)])
def test_what_is_not_a_predictor_or_corrector_is_refused(parts):
    with pytest.raises(
        ValueError, match=r"is not a (predictor|corrector): write for example Sampler\(DDIM\(\), steps=50"
    ):
        Sampler(*parts)


def test_autoguidance_takes_a_model_and_refuses_what_is_not_one():
    weak = model_of_points()
    assert torch.equal(weak.sample(2, guidance=Autoguidance(weak, 3.0)), weak.sample(2))
    with pytest.raises(ValueError, match="weak='run' must be a denoiser or a model"):
        Autoguidance("run")


def test_a_weaker_model_of_other_data_is_refused_by_the_rehearsal():
    model = model_of_points()
    model.guidance = Autoguidance(
        DDPM(MLP(3), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(3,), grey_levels=None)
    )
    with pytest.raises(ValueError, match=r"the guidance Autoguidance: .*the network needs \(batch, 3\)"):
        rehearse(model, torch.randn(2, 2), training=False)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0.0, 1]), "labels of type float32"),
        (torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (torch.tensor([0, 3]), "labels from 0 to 3 must lie between 0 and 2"),
        (torch.tensor([-1, 1]), "labels from -1 to 1"),
        (("cat", "dog"), "labels of type tuple"),
    ],
)
def test_training_labels_that_are_not_classes_are_refused(labels, message):
    # The null label, 3, is one of the network's, so that it would train without an error.
    model = model_of_points(Labels([1, 1, 1]))
    with pytest.raises(ValueError, match=message):
        model.training_step((torch.zeros(2, 2), labels), 0)
    assert model.denoiser.given(label=torch.tensor([0, 3])).condition["label"].tolist() == [0, 3]
    with pytest.raises(ValueError, match="between 0 and 3"):
        model.denoiser.given(label=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="label=3 must be a tensor"):
        model.denoiser.given(label=3)


def test_classifier_free_guidance_needs_a_model_trained_with_label_dropout():
    denoiser = denoiser_of(PROCESSES["vp"])
    denoiser.null = None
    with pytest.raises(ValueError, match="label_dropout=0: leave out"):
        ClassifierFree()(denoiser)
    denoiser.classes = None
    with pytest.raises(ValueError, match="trained without labels: leave out"):
        ClassifierFree()(denoiser)


def test_the_density_of_a_guided_field_must_be_requested_by_name():
    process, (x, label) = PROCESSES["ddpm"], points(3)
    bound = denoiser_of(process).given(label=label)
    guided = ClassifierFree(2.0)(bound)
    for likelihood in (FlowLikelihood, lambda **of: VariationalBound(terms=2, clip=False, **of)):
        with pytest.raises(ValueError, match="guided_field=true"):
            likelihood()(guided, x, None, torch.Generator().manual_seed(0))
        named, own = (
            likelihood(guided_field=flag)(d, x, None, torch.Generator().manual_seed(0)).log_likelihood
            for flag, d in ((True, guided), (False, bound))
        )
        assert (named - own).abs().max() > 1e-2
    with pytest.raises(ValueError, match="bind the condition first"):
        guided.given(label=label)
    assert isinstance(guided, Guided)


def test_the_likelihood_of_a_bound_denoiser_is_that_of_the_class():
    process, (x, label) = PROCESSES["vp"], points(6)
    x = TARGET.m[label].reshape(x.shape) + 0.2 * x
    likelihood = FlowLikelihood(rtol=1e-7, atol=1e-7, probe="exact", precision="float64")
    found = likelihood(denoiser_of(process).given(label=label), x, None).log_likelihood
    for k in range(CLASSES):
        only = mixture.Mixture([1.0], TARGET.m[k : k + 1], TARGET.c[k : k + 1], (2, 1, 1))
        assert (found - only.log_density(x))[label == k].abs().max() < 2e-2
    marginal = likelihood(denoiser_of(process).given(), x, None).log_likelihood
    assert (marginal - TARGET.log_density(x)).abs().max() < 2e-2 and (found - marginal).abs().max() > 0.1
