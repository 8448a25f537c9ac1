"""Class-conditional models: networks with labels, label dropout, labels of samples, label agreement."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from test_resume import STATE, assert_bit_equal

from diffusion_lab.callback import EMA, Checkpoint, RankSeed
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.data import Digits, Patches, Toy2D
from diffusion_lab.data.classes import class_counts
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.evaluation.agreement import agreement, agreement_names
from diffusion_lab.evaluation.likelihood import score_likelihood
from diffusion_lab.evaluation.sample_store import SampleStore
from diffusion_lab.guidance import ClassifierFree
from diffusion_lab.likelihood import FlowLikelihood
from diffusion_lab.loss import DenoisingLoss, ImplicitScoreMatching
from diffusion_lab.model import DDPM, Labels
from diffusion_lab.network import MLP, Energy, NCSNpp, RefineNet, UNet
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Linear
from diffusion_lab.run.changes import changes
from diffusion_lab.run.data import add_labels
from diffusion_lab.sampler import DDIM, Sampler

UNET = {
    "in_channels": 1,
    "image_size": 8,
    "channels": 8,
    "multipliers": (1, 1),
    "blocks": 1,
    "attention": (),
    "groups": 4,
}
REFINE = {"in_channels": 1, "image_size": 8, "channels": 4, "multipliers": (1, 2), "dilations": (1, 1)}
NCSNPP = {**UNET, "progressive_input": "none"}
NETWORKS = {
    "unet": lambda **of: UNet(**UNET, dropout=0.0, **of),
    "ncsnpp": lambda **of: NCSNpp(**NCSNPP, dropout=0.0, **of),
    "ncsnpp unconditional": lambda **of: NCSNpp(**NCSNPP, dropout=0.0, conditional=False, **of),
    "ncsn": lambda **of: RefineNet(**REFINE, levels=5, pool="average", **of),
    "ncsnv2": lambda **of: RefineNet(**REFINE, **of),
    "mlp": lambda **of: MLP(width=8, depth=1, embedding=8, **of),
    "energy": lambda **of: Energy(MLP(width=8, depth=1, embedding=8, **of)),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stirred(network, by=0.3):
    """The network with every parameter perturbed, as some are initialised to zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return network


def seen(name, count=4):
    shape = (count, 2) if name in ("mlp", "energy") else (count, 1, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.full((count,), 2.0)


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_classes_depends_on_each_images_own_label(name):
    network, (x, t) = stirred(NETWORKS[name](classes=3)).eval(), seen(name)
    x = x[:1].expand_as(x)
    out = network(x, t, label=torch.tensor([0, 1, 3, 0])).detach()
    assert torch.allclose(out[0], out[3], atol=1e-6)
    for other in (1, 2):
        assert (out[0] - out[other]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_an_unconditional_network_is_unchanged_and_refuses_labels(name):
    torch.manual_seed(0)
    plain, (x, t) = NETWORKS[name](), seen(name)
    torch.manual_seed(0)
    again = NETWORKS[name](classes=None)
    conditional = NETWORKS[name](classes=3)
    assert [*plain.state_dict()] == [*again.state_dict()] and not any("labels" in key for key in plain.state_dict())
    added = {k: v for k, v in conditional.state_dict().items() if k not in plain.state_dict()}
    tables = {k: v for k, v in added.items() if "labels.weight" in k}
    assert tables and all(len(table) == 4 for table in tables.values())
    assert tables.keys() == added.keys() or name == "ncsnpp unconditional"  # whose blocks had no embedding
    assert torch.equal(plain(x, t), again(x, t))
    with pytest.raises(ValueError, match="without classes: leave out label"):
        plain(x, t, label=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 classes: give each image a label"):
        conditional(x, t)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_loss_trains_every_label_embedding_and_validates_without_gradients(name):
    network, (x, _) = stirred(NETWORKS[name](classes=3)), seen(name)
    row = Parameterization("scaled_score", "level")
    denoiser = Denoiser(network, DiscreteProcess(Linear(), 5), row)
    for loss in [DenoisingLoss()] + [ImplicitScoreMatching()] * (x.dim() == 2):
        network.zero_grad()
        loss(denoiser.given(label=torch.tensor([0, 1, 3, 1])), x, torch.Generator().manual_seed(1)).sum().backward()
        for key, p in network.named_parameters():
            if "labels.weight" in key:
                assert (p.grad.abs().sum(1) > 0).tolist() == [True, True, False, True], key
        with torch.inference_mode():
            loss(denoiser.given(label=torch.tensor([0, 1, 3, 1])), x, torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------- labels of a series


def test_random_labels_follow_the_training_frequencies_and_depend_on_seed_and_index_alone():
    labels = Labels([10, 0, 30, 60])
    drawn = labels.of(None, 4, range(4000))
    share = torch.bincount(drawn, minlength=4) / 4000
    assert (share - torch.tensor([0.1, 0.0, 0.3, 0.6])).abs().max() < 0.03 and share[1] == 0
    assert torch.equal(labels.of(None, 4, range(700, 710)), drawn[700:710])
    assert not torch.equal(labels.of(None, 5, range(100)), drawn[:100])


def test_labels_are_specified_by_number_name_list_or_each():
    labels = Labels([5, 5, 5], ["cat", "dog", "ship"])
    assert labels.of(2, 0, range(3)).tolist() == labels.of("ship", 0, range(3)).tolist() == [2, 2, 2]
    assert labels.of([0, "ship"], 0, range(1, 6)).tolist() == [2, 0, 2, 0, 2]
    assert labels.of(torch.tensor([1, 0]), 0, range(3)).tolist() == [1, 0, 1]
    assert labels.of("each", 0, range(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels.describe(None) == "drawn with the training frequencies"
    assert (labels.describe("each"), labels.describe([2, "cat"])) == ("each class in turn", "ship, cat")
    for wrong in (3, -1, "bird", [0, 5], True, 1.5, []):
        with pytest.raises(ValueError, match=r"choose 0 to 2 \(cat, dog, ship\), a list of them, or each"):
            labels.of(wrong, 0, range(3))


def test_each_label_is_dropped_independently_with_the_given_probability():
    labels, given = Labels([1, 1], dropout=0.2), torch.zeros(5000, dtype=torch.int64)
    torch.manual_seed(0)
    dropped = labels.with_dropout(given)
    assert set(dropped.tolist()) == {0, labels.null} and abs((dropped == 2).double().mean() - 0.2) < 0.02
    torch.manual_seed(0)
    assert torch.equal(labels.with_dropout(given), dropped)
    never, state = Labels([1, 1], dropout=0.0), torch.get_rng_state()
    assert torch.equal(never.with_dropout(given), given) and never.null is None
    assert torch.equal(torch.get_rng_state(), state)


def test_data_modules_report_their_classes():
    assert sum(Digits().class_counts()) == 1400 and len(Digits().class_counts()) == 10
    patches = Patches(train_size=50, held_out_size=10)
    assert patches.class_names == ("china", "flower") and sum(patches.class_counts()) == 50
    assert class_counts("X", torch.tensor([0, 0, 2]), torch.tensor([3]), None) == [2, 0, 1, 0]
    assert class_counts("X", torch.tensor([0, 0]), torch.tensor([0]), ["a", "b"]) == [2, 0]
    for train, held_out in (([0, 0], [0]), ([-1, 0], [1]), ([0, 99], [1])):
        with pytest.raises(ValueError, match="data.conditional=true needs a class"):
            class_counts("X", torch.tensor(train), torch.tensor(held_out), None)
    with pytest.raises(ValueError, match="in Toy2D all labels are 0"):
        Toy2D(name="moons", train_size=20, held_out_size=10).class_counts()


# --------------------------------------------------------------------------- models


def conditional(dropout=0.1, **of):
    torch.manual_seed(7)
    labels = Labels([1] * 8, dropout=dropout)
    network = stirred(MLP(width=16, depth=1, embedding=16, classes=8), 0.1)
    adam = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
    return DDPM(network, Linear(), DenoisingLoss(), Sampler(DDIM(0.3), steps=4), None, adam, (2,), grey_levels=None,
                labels=labels, **of)  # fmt: skip


@pytest.mark.parametrize("guidance", [None, ClassifierFree(2.0)], ids=["", "guided"])
def test_image_i_depends_on_seed_index_and_label_alone(guidance):
    model, more = conditional(), {"guidance": guidance, "seed": 3}
    near = {"rtol": 1e-4, "atol": 1e-4}
    whole = model.sample(11, label=[1, 4, 6], **more)
    assert torch.allclose(model.sample(11, label=[1, 4, 6], batch_size=4, **more), whole, **near)
    for i in (0, 5, 10):
        alone = model.sample(1, first=i, label=[1, 4, 6][i % 3], **more)
        assert torch.allclose(alone, whole[i : i + 1], **near)
        assert not torch.allclose(model.sample(1, first=i, label=0, **more), alone, **near)
    drawn = model.labels_of(range(11), 3)
    assert torch.allclose(model.sample(11, label=drawn, **more), model.sample(11, **more), **near)
    *_, last = model.trajectory(2, label=[4, 6], first=4, **more)
    assert torch.allclose(last.x.float(), whole[4:6], **near)


def test_scale_1_is_no_guidance_and_scale_0_samples_unconditionally():
    model = conditional()
    assert torch.equal(model.sample(4, label=2, guidance=ClassifierFree(1.0)), model.sample(4, label=2))
    none = model.sample(4, label=2, guidance=ClassifierFree(0.0))
    assert torch.equal(none, model.sample(4, label=5, guidance=ClassifierFree(0.0)))
    model.guidance = ClassifierFree(0.0)
    assert torch.equal(none, model.sample(4, label=2))


def test_a_model_without_labels_refuses_them_and_one_without_dropout_is_not_guided():
    network = MLP(width=8, depth=1, embedding=8)
    plain = DDPM(network, Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(2,), grey_levels=None)
    with pytest.raises(ValueError, match="trained without labels"):
        plain.sample(2, label=1)
    for model, why in ((plain, "without labels"), (conditional(dropout=0.0), "label_dropout=0")):
        with pytest.raises(ValueError, match=f"trained with{why.removeprefix('with')}|{why}"):
            model.sample(2, guidance=ClassifierFree(2.0))
    with pytest.raises(ValueError, match="label=8 is not a class"):
        conditional().sample(2, label=8)


class Seen:
    """A loss that records its labels."""

    def __init__(self):
        self.labels, self.of = [], DenoisingLoss()

    def __call__(self, denoiser, x0, generator=None):
        self.labels.append(denoiser.condition["label"])
        return self.of(denoiser, x0, generator)


def test_training_drops_labels_per_image_and_validation_keeps_them():
    model = conditional(dropout=0.5)
    model.loss, label = Seen(), torch.arange(400) % 8
    batch = torch.randn(400, 2), label
    model.training_step(batch, 0)
    (dropped,) = model.loss.labels
    kept = dropped != 8
    assert torch.equal(dropped[kept], label[kept]) and 0.4 < kept.double().mean() < 0.6
    model.on_validation_epoch_start()
    model.validation_step(batch, 0)
    assert torch.equal(model.loss.labels[1], label)


def train(folder, steps, ckpt=None):
    """The last checkpoint of a conditional run."""
    model = conditional(dropout=0.3)
    torch.manual_seed(1 if ckpt is None else 99)
    model.config = {"trainer": {"accumulate_grad_batches": 1}}
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_val_batches=0, default_root_dir=folder,
        callbacks=[RankSeed(3), EMA(0.9, warmup=True), Checkpoint(str(folder), every_n_steps=1, keep=None)],
    )  # fmt: skip
    data = Toy2D(train_size=50, held_out_size=20, batch_size=8, eval_batch_size=5)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return torch.load(folder / f"checkpoints/step_{steps:08d}.ckpt", weights_only=True)


def test_a_conditional_run_that_is_resumed_is_bit_equal_to_an_unbroken_one(tmp_path):
    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "part", 2)
    rest = train(tmp_path / "rest", 6, tmp_path / "part/checkpoints/step_00000002.ckpt")
    assert_bit_equal({k: whole[k] for k in STATE}, {k: rest[k] for k in STATE})


# --------------------------------------------------------------------------- evaluation


def test_agreement_is_the_share_of_samples_of_the_requested_class(tmp_path):
    data, model = Toy2D(train_size=500, held_out_size=200), conditional()
    means = data.target.modes.means.float()
    model.sample = lambda count, *, seed, first, **_: means[
        [
            k if i % 4 else (k + 1) % 8
            for i, k in enumerate(model.labels_of(range(first, first + count), seed).tolist(), first)
        ]
    ]
    series = SampleStore(tmp_path, model, seed=2, batch_size=60)
    series.complete(120)
    (name,) = agreement_names(model, None, data, 60)
    record = agreement(series, None, data, 60, 2)[name]
    assert name == "label_agreement_modes_60" and record["repeats"] == [0.75, 0.75] and record["real"] == 1.0
    noted = series.annotate({name: record})[name]
    assert noted["protocol"]["labels"] == "drawn with the training frequencies" and "guidance" not in noted
    model.labels = None
    assert (
        agreement(series, None, data, 60, 2) == {} and "labels" not in series.annotate({name: record})[name]["protocol"]
    )


def test_the_feature_classifier_is_used_if_it_has_the_same_classes(tmp_path):
    from diffusion_lab.metric import ClassifierFeatures

    data, extractor = Digits(), ClassifierFeatures(steps=150)
    extractor.prepare(data.images("train"), data.labels("train"))
    model = SimpleNamespace(labels=Labels([1] * 10), shape=(1, 8, 8), grey_levels=17, device="cpu", sampler=None)
    model.sampled_labels = lambda: model.labels
    model.labels_of = lambda span, seed: data.labels("held_out", len(span), span.start)
    series = SampleStore(tmp_path, model, batch_size=100)
    for chunk in series.samples.ranges(200):
        images = data.images("held_out", len(chunk), chunk.start)
        series.features(extractor).write(chunk, extractor(images))
    (record,) = agreement(series, extractor, data, 200, 1).values()
    right = extractor.predict(data.images("held_out", 200)) == data.labels("held_out", 200)
    assert record["value"] == pytest.approx(right.double().mean().item(), abs=0.011) and record["value"] > 0.8
    assert record["protocol"]["classifier"] == "digits" and record["real"] > 0.8
    model.labels = Labels([1] * 9)
    assert agreement_names(model, extractor, data, 200) == []


def test_the_likelihood_of_a_conditional_model_uses_each_items_label(tmp_path):
    model, data = conditional(), Toy2D(train_size=50, held_out_size=12)
    model.likelihood = {"flow": FlowLikelihood(1e-2, 1e-2)}
    record = score_likelihood(model, "flow", data, tmp_path, 12, batch_size=5)["flow_nats"]
    assert record["protocol"]["given"] == "the label"
    model.guidance = ClassifierFree(3.0)  # of samples; the likelihood stays the model's
    assert (
        score_likelihood(model, "flow", data, tmp_path / "b", 12, batch_size=5)["flow_nats"]["value"] == record["value"]
    )
    model.likelihood = {"flow": FlowLikelihood(1e-2, 1e-2, guided_field=True)}
    (name, guided), = score_likelihood(model, "flow", data, tmp_path / "c", 12, batch_size=5).items()  # fmt: skip
    assert name == "flow_guided_field_nats" and abs(guided["value"] - record["value"]) > 1e-3
    moved = conditional()
    moved.likelihood, labels = {"flow": FlowLikelihood(1e-2, 1e-2)}, data.labels
    data.labels = lambda *of, **more: (labels(*of, **more) + 1) % 8
    other = score_likelihood(moved, "flow", data, tmp_path / "d", 12, batch_size=5)["flow_nats"]["value"]
    assert abs(other - record["value"]) > 1e-3


# --------------------------------------------------------------------------- configurations


def labelled(network, counts=(3, 4), names=None, **settings):
    settings = {"model": {"_target_": "diffusion_lab.model.DDPM", "network": network}, **settings}
    add_labels(
        settings, SimpleNamespace(conditional=True, augment=0, class_counts=lambda: list(counts), class_names=names)
    )
    return settings["model"]


def test_the_settings_of_a_conditional_model_hold_its_classes():
    inner = {"_target_": "diffusion_lab.network.MLP", "width": 8, "classes": None}
    model = labelled({"_target_": "diffusion_lab.network.Energy", "network": inner}, names=("a", "b"))
    assert inner["classes"] == 2 and "classes" not in model["network"]
    labels = instantiate(model["labels"])
    assert (labels.counts, labels.names, labels.dropout, labels.null) == ([3, 4], ["a", "b"], 0.1, 2)
    assert labelled(inner, label_dropout=0.0)["labels"]["dropout"] == 0.0
    untouched = {"model": {"network": {"_target_": "os.system"}}}
    add_labels(untouched, SimpleNamespace(conditional=False, augment=0))
    assert untouched == {"model": {"network": {"_target_": "os.system"}}}
    with pytest.raises(ConfigError, match="Linear.forward takes no label; define forward"):
        labelled({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2})


def test_a_run_without_label_settings_is_resumed():
    total = {"data": {"batch_size": 4}, "trainer": {"accumulate_grad_batches": 1}}
    now = {**total, "data": {"batch_size": 4, "conditional": False}, "label_dropout": None, "guidance": {},
           "network": {"classes": None}, "model": {"guidance": {}}, "choices": {"guidance": "none"}}  # fmt: skip
    assert changes(total, now)[0] == []
    now["data"]["conditional"] = True
    assert changes(total, now)[0] == ["data.conditional=True (was False)"]


REFUSED = [
    ("data=lsun data.conditional=true", "data.category=bedroom is one class: leave it false"),
    ("data=huggingface data.name=x data.conditional=true", r"data.label_column is null"),
    ("data=celeba data.conditional=true", r"data.attribute is null"),
    ("label_dropout=0.2", "set data.conditional=true"),
    ("data.conditional=true label_dropout=1", r"label_dropout=1 must be in \[0, 1\)"),
    ("data.conditional=true label_dropout=-0.1", r"label_dropout=-0.1 must be in \[0, 1\)"),
    ("guidance=classifier_free", "needs a model with dropped labels"),
    ("data.conditional=true label_dropout=0 guidance=classifier_free", "needs a model with dropped labels"),
    ("data.conditional=true guidance=classifier_free guidance.scale=-1", r"guidance.scale=-1 must be in \[0, inf\)"),
    ("data.conditional=true guidance=trained", "only makes sense for sample.py"),
    ("guidance=autoguidance", "guidance.ckpt_path must be given"),
    ("data.conditional=3", "must be bool"),
]


@pytest.mark.parametrize("arguments, message", REFUSED, ids=[a for a, _ in REFUSED])
def test_invalid_labels_are_refused_in_one_line_before_anything_is_loaded(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        check("train", arguments.split())
    assert "\n" not in str(error.value)


def test_counts_of_a_grid_with_a_row_for_each_class(tmp_path, monkeypatch):
    from diffusion_lab.callback import samples

    shown = []
    monkeypatch.setattr(
        samples.picture, "grid", lambda images, columns=None: shown.append((images, columns)) or images[0]
    )
    monkeypatch.setattr(samples.picture, "save_png", lambda *_: None)
    model = SimpleNamespace(shape=(1, 2, 2), is_image=True, grey_levels=17, labels=Labels([1] * 3))
    model.sampled_labels = lambda: model.labels
    labels = model.labels.of("each", 0, range(8))
    samples.draw_samples(
        model, labels.float()[:, None, None, None].expand(8, 1, 2, 2), tmp_path / "x.png", None, labels
    )
    ((images, columns),) = shown
    assert columns == 2 and images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert Counter(labels.tolist()) == {0: 3, 1: 3, 2: 2}
