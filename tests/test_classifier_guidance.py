"""Classifier guidance against closed forms and guided-diffusion's recorded values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from test_guidance import CLASSES, PROCESSES, TARGET
from test_sampler_verification import failures

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import ClassifierGuidance, ClassPosterior
from diffusion_lab.likelihood import FlowLikelihood
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.metric.two_sample import energy_distance
from diffusion_lab.model import DDPM, Labels, rehearse
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import Cosine, DiscreteProcess, Linear
from diffusion_lab.sampler import DDIM, Ancestral, EulerMaruyama, Langevin, ReverseDiffusion, Sampler
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.verification import mixture
from diffusion_lab.verification.guidance import by_classifier, check_field
from diffusion_lab.verification.mixture import ClassLogits, exact_classifier, exact_denoiser

FIXTURE = Path(__file__).parent / "reference" / "classifier_guidance.npz"


def classifier_of(process, unit_input=False, classes=CLASSES, shape=(2, 1, 1)):
    return exact_classifier(TARGET, process, unit_input, classes, shape)


def points(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=generator)
    return z, torch.arange(count) % CLASSES


def worst(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("unit_input", [False, True])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_gradient_is_the_conditional_minus_the_marginal_score(process, unit_input):
    (z, label), posterior = points(), classifier_of(process, unit_input)
    times = process.timesteps(7 if process.levels is None else min(7, process.levels))
    for t in times:
        alpha, sigma = process.alpha_sigma(t)
        x = (alpha**2 + sigma**2).sqrt() * z
        own = torch.stack([
            mixture.Mixture([1.0], TARGET.m[k : k + 1], TARGET.c[k : k + 1], (2, 1, 1)).score(x[i : i + 1], alpha, sigma)[0]
            for i, k in enumerate(label.tolist())
        ])  # fmt: skip
        marginal = TARGET.score(x, alpha, sigma)
        assert worst(posterior.log_prob(x, t, label).exp(), TARGET.posterior(x, alpha, sigma)[range(12), label]) < 1e-10
        gradient = posterior.gradient(x, posterior.preconditionings(t.reshape(1), x)[0], label)
        assert worst(gradient, own - marginal) < 1e-6
    if not unit_input:
        assert failures(check_field(by_classifier(ClassifierGuidance(posterior, scale=0.0), process), process)) == []


BY_SCORE = Sampler(DDIM(), steps=80, spacing="log_snr")
BY_MEAN = Sampler(Ancestral("fixed_small"), steps=100, spacing="log_snr")


def kolmogorov(a, b):
    """The largest Kolmogorov-Smirnov statistic of two sets of points on eight lines; 0.02 at the level 1e-3."""
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 8
    lines = torch.stack([angles.cos(), angles.sin()])
    return max(ks_2samp(*pair).statistic for pair in zip((a @ lines).T.numpy(), (b @ lines).T.numpy(), strict=True))


@pytest.mark.parametrize(
    "form, sampler, process",
    [
        ("mean", Sampler(Ancestral("fixed_small"), steps=150, spacing="trailing"), "ddpm"),
        ("mean", Sampler(Ancestral("fixed_large"), steps=100, spacing="trailing"), "ddpm"),
        *(("mean", BY_MEAN, process) for process in ("vp", "subvp", "ve")),
        *(("score", BY_SCORE, process) for process in ("ddpm", "vp", "subvp", "ve")),
    ],
)
def test_scale_one_gives_the_law_of_the_class(form, sampler, process):
    """Two-sample test on 20,000 samples: the energy distance is that of two exact sets, and the moments agree.

    The mean form has an error of the order of a step.
    """
    process, count = PROCESSES[process], 20_000
    guided = ClassifierGuidance(classifier_of(process), 1, 1.0, form=form)(exact_denoiser(TARGET, process))
    got = sampler(guided, (count, 2, 1, 1), torch.Generator().manual_seed(1)).flatten(1).double()
    own = mixture.Mixture([1.0], TARGET.m[1:2], TARGET.c[1:2], (2, 1, 1))
    exact, again = (own.sample(count, seed)[0].flatten(1) for seed in (0, 1))
    every = TARGET.sample(count, 2)[0].flatten(1)
    few = slice(0, 4000)
    distance = energy_distance(got[few], exact[few])
    noise = energy_distance(again[few], exact[few])
    assert distance < noise + 2e-3 and energy_distance(every[few], exact[few]) > 50 * (noise + 2e-3)
    assert kolmogorov(got, exact) < {"score": 0.025, "mean": 0.06}[form] < kolmogorov(every, exact) / 8
    assert (got.mean(0) - TARGET.m[1]).abs().max() < (0.05 if sampler is BY_MEAN else 0.02)
    assert (got.T.cov() - TARGET.c[1]).abs().max() < 0.02


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
@pytest.mark.parametrize(
    "sampler",
    [Sampler(EulerMaruyama(), Langevin(snr=0.1), steps=30), Sampler(ReverseDiffusion(), steps=30), ProbabilityFlow()],
    ids=["pc", "reverse_diffusion", "ode"],
)
def test_at_scale_one_predictors_and_correctors_make_the_samples_of_the_class(process, sampler):
    process, shape = PROCESSES[process], (50, 2, 1, 1)
    own = exact_denoiser(mixture.Mixture([1.0], TARGET.m[1:2], TARGET.c[1:2], (2, 1, 1)), process)
    guided = ClassifierGuidance(classifier_of(process), 1)(exact_denoiser(TARGET, process))
    samples, wanted = (sampler(d, shape, torch.Generator().manual_seed(1)) for d in (guided, own))
    assert worst(samples, wanted) < 1e-3


def test_both_forms_are_those_of_guided_diffusion():
    """condition_mean with learned and fixed variances, and condition_score, on values recorded from the program.

    Its score form clips x_0 before the shift, ours after it, as every threshold: compared without clipping.
    """
    with np.load(FIXTURE) as file:
        recorded = {key: torch.from_numpy(file[key]) for key in file.files}
    x, noise, label, levels = recorded["x"], recorded["noise"], recorded["label"], recorded["betas"].numel()

    def predict(seen, c_noise):
        eps = torch.tanh(1.3 * seen) + 0.1 * c_noise[:, None, None, None] / 50
        return torch.cat([eps, 1.2 * torch.cos(3 * seen)], 1)

    def classify(seen, c_noise):
        return torch.tanh(seen).flatten(1) @ recorded["weights"] + c_noise[:, None] * recorded["by_time"]

    process = DiscreteProcess(Cosine(), levels)
    row = Parameterization(c_noise="level", learned_range=True)
    learned = Denoiser(predict, process, row)
    fixed = Denoiser(lambda seen, c: predict(seen, c)[:, :3], process, Parameterization(c_noise="level"))
    posterior = ClassPosterior(classify, process, Parameterization(c_noise="level"), 5)
    for form, key, denoiser, variance in (
        ("mean", "learned_mean", learned, "learned_range"),
        ("mean", "fixed_mean", fixed, "fixed_small"),
        ("score", "learned_score", learned, "learned_range"),
    ):
        guided = ClassifierGuidance(posterior, label, 2.5, form=form)(denoiser)
        for index in (1, levels // 2, levels - 1):
            t, s = (index + 1) / levels, index / levels
            sampler = Sampler(Ancestral(variance), spacing="explicit", times=[t, s], clip=form == "mean", denoise=False)
            written = sampler.written(guided, torch.tensor([t, s], dtype=torch.float64), x.float())
            written.start(lambda: noise.float())
            got = written.step(sampler.predictor, x.float(), t, s)
            assert worst(got, recorded[f"{key}_{index}"]) < 5e-6, (key, index)


def test_an_item_does_not_depend_on_its_batch_also_where_autograd_is_off():
    process, (x, label) = PROCESSES["ddpm"], points()
    posterior, denoiser = classifier_of(process), exact_denoiser(TARGET, process)
    for form in ("score", "mean"):
        sampler = Sampler(Ancestral(), steps=10, precision="float64")
        results = []
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                each = [
                    sampler.as_written(ClassifierGuidance(posterior, y, 2.0, form=form)(denoiser), one, generator)
                    for one, y, generator in (
                        (x.clone(), label, [torch.Generator().manual_seed(i) for i in range(12)]),
                        (x[3:4].clone(), label[3:4], [torch.Generator().manual_seed(3)]),
                    )
                ]
            results += [each[0][3:4], each[1]]
        assert all(worst(one, results[0]) < 1e-12 for one in results)
        assert not each[0].requires_grad


def test_a_network_with_weights_runs_in_inference_mode():
    denoiser, classifier = model_of().denoiser, network_classifier()
    with torch.inference_mode():
        guided = ClassifierGuidance(classifier, 1, 2.0)(denoiser)
        sample = Sampler(DDIM(), steps=3)(guided, (4, 2), torch.Generator().manual_seed(0))
    assert sample.isfinite().all()


def test_recorded_steps_are_the_steps_as_written_and_calls_are_counted():
    process, (x, label) = PROCESSES["ddpm"], points(seed=5)
    denoiser = exact_denoiser(TARGET, process)
    low, high, steps = 0.3, 3.0, 20
    for form, step in (("score", DDIM(0.5)), ("score", Ancestral()), ("mean", Ancestral())):
        guided = ClassifierGuidance(classifier_of(process), label, 2.0, (low, high), form)(denoiser)
        sampler = Sampler(step, steps=steps, precision="float64")
        times = sampler.timesteps(denoiser)
        alpha, sigma = process.alpha_sigma(times if form == "score" else times[:-1])
        inside = int(((sigma / alpha >= low) & (sigma / alpha <= high)).sum())
        denoiser.nfe = 0
        *_, recorded = sampler.trajectory(guided, x, torch.Generator().manual_seed(2))
        assert denoiser.nfe == steps + inside and 0 < inside < steps
        assert worst(recorded.x, sampler.as_written(guided, x, torch.Generator().manual_seed(2))) < 1e-12
    assert str(ClassifierGuidance(classifier_of(process), label, 2.0, (low, high))) == (
        "classifier, form score, scale 2 where 0.3 <= sigma/alpha <= 3.0; calls of the classifier are counted"
    )


def model_of(labels=None, levels=1000, **options):
    return DDPM(
        MLP(2, classes=labels and labels.classes), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2, spacing="trailing"),
        shape=(2,), grey_levels=None, labels=labels, levels=levels, **options,
    )  # fmt: skip


class Logits(torch.nn.Module):
    """A classifier of points with weights."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, classes))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None] / 1000], 1))


def network_classifier(model=None, classes=CLASSES, shape=(2,)):
    denoiser = (model or model_of()).denoiser
    return ClassPosterior(Logits(classes), denoiser.process, denoiser.parameterization, classes, shape)


@pytest.mark.parametrize("labels", [None, Labels([3, 1, 1]), Labels([3, 1, 1], dropout=0)])
def test_a_model_takes_labels_from_itself_or_from_the_classifier(labels):
    model, guidance = model_of(labels), ClassifierGuidance(network_classifier(), scale=3.0)
    if labels is None:
        with pytest.raises(ValueError, match="trained without labels .*ClassifierGuidance"):
            model.sample(2, label=1)
    mixed = model.sample(6, label=[2, 0], guidance=guidance)
    for label, place in ((2, slice(0, None, 2)), (0, slice(1, None, 2))):
        alone = model.sample(6, label=label, guidance=guidance)
        assert torch.allclose(mixed[place], alone[place], atol=1e-5)
        by_default = model.sample(6, guidance=ClassifierGuidance(network_classifier(), label, 3.0))
        assert by_default.shape == alone.shape
    assert not torch.allclose(mixed[:1], model.sample(1, label=0, guidance=guidance), atol=1e-3)
    drawn = model.labels_of(range(300), 0, guidance=guidance)
    assert drawn.bincount(minlength=3).min() > 30  # random labels: all classes of the classifier, or the model's
    assert [*model.labels_of(range(4), 0, "each", guidance)] == [0, 1, 2, 0]
    model.guidance = guidance
    assert torch.equal(model.sample(2, label="each"), model.sample(2, label=[0, 1]))
    with pytest.raises(ValueError, match="label=3 is not a class of this model: choose 0 to 2"):
        model.sample(1, label=3)


@pytest.mark.parametrize(
    "classifier, what",
    [
        (
            network_classifier(model_of(levels=999)),
            r"its noise process, DiscreteProcess \(999 levels, sigma/alpha .*\) instead of DiscreteProcess \(.*\)",
        ),
        (network_classifier(classes=4), "its classes, 4 instead of 3"),
        (network_classifier(shape=(3,)), r"the shape of its data, \(3,\) instead of \(2,\)"),
    ],
)
def test_a_classifier_of_other_noise_classes_or_data_is_refused(classifier, what):
    with pytest.raises(ValueError, match=f"this one differs in {what}: choose another classifier"):
        model_of(Labels([1, 1, 1])).sample(1, guidance=ClassifierGuidance(classifier))


def test_other_names_of_classes_and_another_range_of_images_are_refused():
    classifier = network_classifier()
    classifier.labels = Labels([1, 1, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="differs in the names of its classes"):
        model_of(Labels([1, 1, 1])).sample(1, guidance=ClassifierGuidance(classifier))
    process = PROCESSES["ve"]
    with pytest.raises(ValueError, match="differs in the range of its images"):
        other = ClassPosterior(ClassLogits(TARGET, process), process, Parameterization(low=0.0), 3)
        ClassifierGuidance(other, 0)(exact_denoiser(TARGET, process))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ClassifierGuidance("run"), "needs a classifier .* this is a str"),
        (lambda: ClassifierGuidance(model_of()), "needs a classifier .* this is a Denoiser"),
        (lambda: ClassifierGuidance(model_of), "."),
        (lambda: ClassifierGuidance(network_classifier(), scale=-1), "scale=-1 must be in"),
        (lambda: ClassifierGuidance(network_classifier(), interval=[2, 1]), "guidance.interval="),
        (lambda: ClassifierGuidance(network_classifier(), form="eps"), "form=.* score, mean"),
        (lambda: ClassifierGuidance(network_classifier())(model_of().denoiser), "needs a label"),
        (lambda: ClassifierGuidance(network_classifier(), 3)(model_of().denoiser), "must lie between 0 and 2"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    if message == ".":
        with pytest.raises(ValueError, match="this is a DDPM"):  # found on first use
            make()(model_of().denoiser)
        return
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_that_returns_no_logits_is_refused():
    classifier = network_classifier()
    classifier.classes = 5
    with pytest.raises(ValueError, match=r"the classifier returns \(2, 3\), expected logits \(B, 5\)"):
        model_of().sample(2, label=1, guidance=ClassifierGuidance(classifier))
    model = model_of()
    for form in ("score", "mean"):
        model.guidance = ClassifierGuidance(classifier, form=form)
        with pytest.raises(ValueError, match="the guidance ClassifierGuidance: the classifier returns"):
            rehearse(model, torch.randn(2, 2), training=False)


@pytest.mark.parametrize(
    "sampler", [Sampler(DDIM(), steps=3), ProbabilityFlow(), Sampler(Ancestral(), Langevin(snr=0.1), steps=3)]
)
def test_the_mean_form_is_for_ancestral_sampling_only(sampler):
    guidance = ClassifierGuidance(network_classifier(), form="mean")
    with pytest.raises(ValueError, match="shifts the mean of ancestral steps: use sampler=ancestral"):
        model_of().sample(2, label=1, guidance=guidance, sampler=sampler)


def test_a_denoiser_guided_by_a_gradient_has_no_likelihood():
    for form in ("score", "mean"):
        guided = ClassifierGuidance(network_classifier(), 1, form=form)(model_of().denoiser)
        for likelihood in (FlowLikelihood(), FlowLikelihood(guided_field=True)):
            with pytest.raises(ValueError, match="guided by a gradient has no likelihood"):
                likelihood(guided, torch.zeros(2, 2), None, torch.Generator().manual_seed(0))
