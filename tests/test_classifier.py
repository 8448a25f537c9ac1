"""A classifier of noised data: its loss, its training, and guidance by it, in Python and from the command line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zygote
from test_classifier_guidance import PROCESSES, TARGET, classifier_of

import diffusion_lab
from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.config.compose import training
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import Toy2D
from diffusion_lab.evaluation.accuracy import accuracy, correct
from diffusion_lab.guidance.classifier import check_classifier_of
from diffusion_lab.loss import CrossEntropy
from diffusion_lab.model import Classifier, Labels, rehearse
from diffusion_lab.network import MLP, NoisyClassifier
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Linear

ROOT = Path(__file__).resolve().parents[1]


def drawn(count):
    """(x0, component) of the mixture."""
    generator = torch.Generator().manual_seed(0)
    label = torch.multinomial(TARGET.w.float(), count, replacement=True, generator=generator)
    z = torch.randn(count, 2, 1, dtype=torch.float64, generator=generator)
    roots = torch.linalg.cholesky(TARGET.c)
    return (TARGET.m[label] + (roots[label] @ z)[..., 0]).reshape(count, 2, 1, 1), label


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_expected_loss_of_the_exact_classifier_is_the_conditional_entropy(process):
    x0, label = drawn(4000)
    classifier = classifier_of(process).given(label=label)
    generator = torch.Generator().manual_seed(1)
    t = process.sample_times(len(x0), x0.device, generator)
    x = process.perturb(x0, t, torch.randn(x0.shape, dtype=x0.dtype, generator=generator))
    p = classifier(x, t).softmax(1)
    entropy = -(p * p.log()).sum(1)
    losses = CrossEntropy()(classifier, x0, torch.Generator().manual_seed(1))
    error = (losses - entropy).std() / len(x0) ** 0.5
    assert abs(losses.mean() - entropy.mean()) < 4 * error


def test_the_loss_is_the_cross_entropy_at_the_given_times():
    torch.manual_seed(0)
    process, row = DiscreteProcess(Linear(), 1000), Parameterization(c_noise="level")
    network = MLP(outputs=3)
    torch.nn.init.normal_(network.linear_out.weight)
    x0, t, eps, y = torch.randn(5, 2), torch.rand(5), torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    classifier = ClassPosterior(network, process, row, 3).given(label=y)
    expected = F.cross_entropy(network(process.perturb(x0, t, eps), t * 1000 - 1), y, reduction="none")
    torch.testing.assert_close(CrossEntropy().at(classifier, x0, t, eps), expected)
    assert CrossEntropy().at(classifier, x0, t, eps).shape == (5,)


def test_the_loss_needs_a_classifier_with_labels():
    process, row = DiscreteProcess(Linear(), 10), Parameterization()
    for other in (
        ClassPosterior(MLP(outputs=3), process, row, 3),
        diffusion_lab.denoiser.Denoiser(MLP(), process, row),
    ):
        with pytest.raises(ValueError, match="needs a classifier that is bound to labels: choose model=classifier"):
            CrossEntropy()(other, torch.zeros(2, 2))


def of_points(**changes):
    options = {"labels": Labels([1, 1, 1], dropout=0), "shape": (2,), "grey_levels": None}
    return Classifier(
        MLP(outputs=3), DiscreteProcess(Linear(), 100), CrossEntropy(), torch.optim.Adam, **options | changes
    )


@pytest.mark.parametrize("labels", [None, Labels([1, 1, 1])])
def test_a_classifier_needs_labels_without_dropout(labels):
    with pytest.raises(ValueError, match="a classifier needs labels without dropout"):
        of_points(labels=labels)


def test_the_rehearsal_names_a_network_that_returns_no_logits():
    assert rehearse(of_points(), torch.randn(2, 2)) == []
    model = of_points()
    model.denoiser.network = MLP()
    with pytest.raises(
        ValueError, match=r"the network MLP returns \(B, 2\), expected \(B, 3\), a logit for each class"
    ):
        rehearse(model, torch.randn(2, 2))


def test_the_accuracy_is_that_of_every_batch_size_and_of_the_exact_classifier():
    data = Toy2D(name="eight_gaussians", shape=(2,), grey_levels=None, flip=False, train_size=10, held_out_size=999)
    data.setup("test")
    process = DiscreteProcess(Linear(), 1000)
    centres = data.target.m if hasattr(data.target, "m") else None
    times = process.timesteps(3)

    class Nearest(torch.nn.Module):
        """The most probable of eight modes, at any noise level: a classifier by the angle."""

        def forward(self, x, c_noise):
            angle = torch.arange(8) * torch.pi / 4
            return x @ torch.stack([angle.cos(), angle.sin()])

    model = Classifier(
        Nearest(), process, CrossEntropy(), shape=(2,), grey_levels=None, labels=Labels([1] * 8, dropout=0)
    )
    record = accuracy(model, data, times, batch_size=100)
    assert record == accuracy(model, data, times, batch_size=999)
    rates = record["curve"]["accuracy"]
    assert rates == sorted(rates) and rates[0] < 0.25 and rates[-1] == 1.0, centres
    assert record["value"] == pytest.approx(sum(rates) / 3)
    x, y = data.images("held_out", 50), data.labels("held_out", 50)
    counts = sum(correct(model, x[i : i + 1], y[i : i + 1], times, range(i, i + 1), 0) for i in range(50))
    assert torch.equal(counts, correct(model, x, y, times, range(50), 0))  # an item's noise is its own


def test_a_classifier_of_images_has_the_number_of_outputs_it_is_given():
    small = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 32}
    network = NoisyClassifier(1, 8, 7, **small)
    assert network(torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape == (3, 7)
    with pytest.raises(ValueError, match="outputs=None must be the number of classes"):
        NoisyClassifier(1, 8, None, **small)


DOCUMENTED = {  # words of a model -> those of its classifier, in docs/guide/sampling.md
    "model=ddpm": "",
    "model=adm": "schedule=cosine",
    "model=iddpm": "schedule=cosine",
    **{f"model=score_sde sde={sde}": f"sde={sde}" for sde in ("vp", "subvp", "ve", "vp_discrete", "ve_discrete")},
    "model=flow": "sde=flow",
    "model=edm": "sde=edm sigma_min=0.002 sigma_max=80",
    "model=ncsn": "sde=ve_discrete sde.process.levels=20 sigma_min=0.04 sigma_max=1",
    "model=ncsnv2": "sde=ve_discrete sde.process.levels=50",
}


@pytest.mark.parametrize(
    "words, data", [*((words, "digits") for words in DOCUMENTED), ("model=score_sde sde=ve", "toy2d")]
)
def test_the_documented_classifier_of_each_model_has_its_noise(words, data):
    ours, theirs = (
        training([*chosen.split(), f"data={data}"])["model"]
        for chosen in (words, f"model=classifier {DOCUMENTED[words]}")
    )
    model = instantiate({**ours, "likelihood": None}, "model")
    process = instantiate(theirs["process"], "process")
    row = Parameterization(c_noise=theirs["c_noise"], low=theirs["low"], high=theirs["high"])
    check_classifier_of(model.denoiser, ClassPosterior(MLP(outputs=3), process, row, 3))
    documented = (ROOT / "docs" / "guide" / "sampling.md").read_text()
    assert all(
        f"{key}=" in documented and value in documented for key, value in re.findall(r"(\S+)=(\S+)", DOCUMENTED[words])
    )


def run(script, *arguments, cwd, code=0):
    done = zygote.run(ROOT / script, *arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


FAST = ("data=toy2d", "logger=csv", "trainer.accelerator=cpu", "data.held_out_size=500", "data.train_size=5000")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory, a short classifier's run of eight modes, and a model's."""
    root = tmp_path_factory.mktemp("classifier")
    said = run(
        "train.py", "model=classifier", *FAST, "trainer.max_steps=400", "callback.accuracy.every_n_steps=200", cwd=root
    )
    assert "guide a model of the same data and noise by it:  guidance=classifier guidance.ckpt_path=" in said
    quick = ("trainer.max_steps=400", "callback.evaluation=null", "callback.samples=null")
    run("train.py", *FAST, *quick, cwd=root)
    return root, *(next(root.glob(f"logs/train/{name}_toy2d/*")) for name in ("classifier", "ddpm"))


def test_training_logs_and_draws_the_accuracy_of_each_noise_level(runs):
    _, folder, _ = runs
    results = json.loads((folder / "results.json").read_text())
    record = results["metrics"]["accuracy"]
    assert results["step"] == 400 and results["weights"] == "ema" and "sampler" not in results
    rates = record["curve"]["accuracy"]
    assert rates[-1] > 0.95 and rates[0] < 0.3 and record["chance"] < 0.2  # from noise to data
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["eval/accuracy"]]
    assert [int(row["step"]) for row in rows] == [200, 400]
    assert float(rows[-1]["eval/accuracy"]) == pytest.approx(record["value"])
    columns = [name for name in rows[-1] if name.startswith("eval/accuracy/t=")]
    assert [float(rows[-1][name]) for name in columns] == pytest.approx(rates), columns
    assert (folder / "accuracy.png").stat().st_size > 5000
    assert json.loads((folder / "results.json").read_text())["network"] == "mlp"


@pytest.mark.parametrize("form", ["score", "mean"])
def test_a_model_without_labels_is_guided_to_each_class(runs, form):
    root, classifier, model = runs
    guided = ("guidance=classifier", f"guidance.ckpt_path={classifier}", f"guidance.form={form}", "guidance.scale=3")
    out = root / form
    said = run("sample.py", f"ckpt_path={model}", *guided, "label=[0,5]", "num_samples=200", f"out={out}", cwd=root)
    assert "network evaluations per sample" in said
    points = torch.from_numpy(np.load(out / "samples.npz")["arr_0"])
    data = Toy2D(name="eight_gaussians", shape=(2,), grey_levels=None, flip=False, train_size=10, held_out_size=10)
    data.setup("test")
    nearest = data._labelled(points).labels
    wanted = torch.tensor([0, 5]).repeat(100)
    assert (nearest == wanted).float().mean() > 0.85
    model = diffusion_lab.load(model)
    posterior = diffusion_lab.load(classifier)
    assert isinstance(posterior, Classifier) and not posterior.training
    guidance = diffusion_lab.guidance.ClassifierGuidance(posterior, scale=3.0, form=form)
    again = model.sample(200, label=[0, 5], guidance=guidance, batch_size=500)
    torch.testing.assert_close(again, points, rtol=0, atol=1e-5)


def test_a_classifier_resumes_bit_equally(runs):
    root, folder, _ = runs
    short = ("model=classifier", *FAST, "warmup_steps=0", "decay_steps=null", "callback.checkpoint.every_n_steps=10")
    run("train.py", *short, "trainer.max_steps=20", "hydra.run.dir=whole", cwd=root)
    run("train.py", *short, "trainer.max_steps=10", "hydra.run.dir=half", cwd=root)
    run("train.py", *short, "trainer.max_steps=20", "ckpt_path=half", "hydra.run.dir=half", cwd=root)
    whole, half = (
        torch.load(root / name / "checkpoints" / "step_00000020.ckpt", weights_only=True) for name in ("whole", "half")
    )
    for part in (whole["state_dict"], whole["ema"]["weights"]):
        other = half["state_dict"] if part is whole["state_dict"] else half["ema"]["weights"]
        assert all(torch.equal(part[key], other[key]) for key in part)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model=classifier", "data.conditional=false"], "a classifier needs the labels of the data: set data.conditional=true"),
        (["model=classifier", "label_dropout=0.1"], "Classifier predicts the labels .* leave out label_dropout"),
        (["model=classifier", "sampler=ddim"], "sampler=ddim has no effect: nothing chosen here uses it; model=adm"),
        (["model=classifier", "guidance.scale=2"], "guidance.scale"),
        (["model=classifier", "likelihood=flow"], "likelihood=flow has no effect"),
        (["model=classifier", "metric=inception"], "metric=inception has no effect"),
        (["model=classifier", "callback.accuracy.times=0"], "callback.accuracy.times=0"),
        (["model=classifier", "loss=simple"], "."),
        (["loss=cross_entropy"], "needs a classifier that is bound to labels: choose model=classifier"),
        (["model=classifier", "data=lsun", "network.attention=[32,16]"], "bedroom is one class"),
        (["guidance=classifier"], "guidance.ckpt_path must be given"),
        (["model=classifier", "network=unet_small"], "expected .* a logit for each class"),
    ],
)  # fmt: skip
def test_a_training_that_makes_no_sense_is_refused(tmp_path, arguments, message):
    done = zygote.run(ROOT / "train.py", *arguments, "trainer.max_steps=1", "logger=csv", cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and len(said.strip().splitlines()) == 1, said
    assert re.search(message, said), said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ckpt_path={classifier}"], "holds a classifier, which has no samples: sample from a model, and guide it by"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path={model}"], "holds a DDPM: give a run of model=classifier"),
        (["ckpt_path={model}", "guidance=autoguidance", "guidance.ckpt_path={classifier}"], "holds a Classifier: give a run of a model that"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path=nowhere"], "guidance.ckpt_path=nowhere does not exist"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path={classifier}", "label=8"], "label=8 is not a class"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path={classifier}", "guidance.scale=-1"], "guidance.scale=-1"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path={classifier}", "guidance.form=eps"], "guidance.form='eps' .*score, mean"),
        (["ckpt_path={model}", "guidance=classifier", "guidance.ckpt_path={classifier}", "guidance.form=mean", "sampler=ddim"], "ancestral"),
        (["ckpt_path={model}", "label=1"], "guide it by guidance=classifier"),
    ],
)  # fmt: skip
def test_a_guidance_that_does_not_fit_is_refused(runs, arguments, message):
    root, classifier, model = runs
    words = [word.format(classifier=classifier, model=model) for word in arguments]
    done = zygote.run(ROOT / "sample.py", *words, cwd=root)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and len(said.strip().splitlines()) == 1, said
    assert re.search(message, said), said
