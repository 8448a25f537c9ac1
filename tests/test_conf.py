"""The configuration: all options compose, with the published numbers; mistakes are refused with a message."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import quick_hydra
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffusion_lab.config import schema
from diffusion_lab.config.compose import CONF, PARTS, check, options, plain
from diffusion_lab.config.validation import check_network_fits_data
from diffusion_lab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(overrides))
    return plain(config)


def test_the_published_run_composes_to_the_published_numbers():
    official = json.loads((ROOT / "tests/reference/ddpm_cifar10.json").read_text())
    c = composed("model=ddpm", "data=cifar10", "trainer.devices=8")
    assert c["trainer"]["devices"] == 8 and c["data"]["flip"] is True
    assert {
        "batch_size": c["data"]["batch_size"],
        "lr": c["optimizer"]["lr"],
        "adam_eps": c["optimizer"]["eps"],
        "warmup": c["warmup_steps"],
        "ema": c["callback"]["ema"]["decay"],
        "ema_warmup": c["callback"]["ema"]["warmup"],
        "steps": c["trainer"]["max_steps"],
        "dropout": c["network"]["dropout"],
        "clip": c["trainer"]["gradient_clip_val"],
        "levels": c["model"]["levels"],
        "beta_first": c["schedule"]["beta_min"] / 1000,
        "beta_last": c["schedule"]["beta_max"] / 1000,
        "channels": c["network"]["channels"],
        "multipliers": c["network"]["multipliers"],
        "attention": c["network"]["attention"],
        "blocks": c["network"]["blocks"],
        "variance": c["model"]["sampler"]["predictor"]["variance"],
        "output": c["model"]["output"],
        "fid_samples": c["metric"]["samples"],
    } == official


def test_what_the_tests_keep_of_hydra_composes_as_hydra_does(monkeypatch):
    """tests/quick_hydra.py, whose copies nobody else sees."""
    commands = (
        (), ("data=toy2d", "model=edm", "sampler.steps=7", "+trainer.x={a: [1, '${seed}']}"),
        ("experiment=score_sde/table1/vp_probability_flow_pc1000", "sampler=ddim"),
    )  # fmt: skip

    def texts() -> list[str]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = [compose("train", [*words], return_hydra_config=True) for words in commands]
        written = [OmegaConf.to_yaml(one) for one in made]
        for one in made:
            OmegaConf.set_struct(one, False)
            one.model.clear()
            one.callback.ema = one.data.pop("batch_size")
        return written

    assert texts() == texts(), "someone sees what another does"
    kept = texts()
    for owner, name in quick_hydra.REPLACED:
        monkeypatch.setattr(owner, name, quick_hydra.ORIGINAL[name])
    assert texts() == kept


def test_a_changed_file_is_read_again(tmp_path):
    """By the tests, which keep what they have read."""
    (tmp_path / "schedule").mkdir()
    for value in (1, 22):
        (tmp_path / "schedule" / "own.yaml").write_text(f"a: {value}\n")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert compose("train", [f"hydra.searchpath=[{tmp_path}]", "schedule=own"]).schedule == {"a": value}
        assert OmegaConf.load(tmp_path / "schedule" / "own.yaml") == {"a": value}


GROUPS = ["data", "schedule", "loss", "sampler", "likelihood", "metric", "optimizer", "logger", "debug", *PARTS[:2]]
NEEDS = {
    "loss=progressive": ["loss.teacher.ckpt_path=."],
    "loss=flash": ["loss.teacher.ckpt_path=."],
    **{f"loss=consistency_{kind}": ["model=consistency"] for kind in ("continuous", "improved", "training", "tuning")},
    "loss=consistency_distillation": ["model=consistency", "loss.teacher.ckpt_path=."],
    "loss=consistency_continuous_distillation": ["model=consistency", "loss.teacher.ckpt_path=."],
    "loss=contrastive": ["model=score", "network=energy_small"],
    "data=image_folder": ["data.root=somewhere"],
    "data=huggingface": ["data.name=somewhere"],
    "sampler=custom": ["sampler/predictor=ddim"],
    "sampler/predictor=none": ["sampler=custom", "sampler/corrector=langevin"],
    "metric=network": ["metric.features.network._target_=torch.nn.Flatten", "metric.features.name=pixels"],
}
DATA = [o for o in options("data") if f"data={o}" not in NEEDS]


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS for o in options(g) if o != "trained"])
def test_every_option_composes_and_is_valid(choice):
    check("train", [choice, *NEEDS.get(choice, [])])


@pytest.mark.parametrize("model", [o for o in options("model")])
@pytest.mark.parametrize("data", DATA)
def test_every_model_composes_with_every_data_set(model, data):
    if (model, data) == ("classifier", "lsun"):
        with pytest.raises(ConfigError, match="bedroom is one class"):
            check("train", ["model=classifier", "data=lsun", "network.attention=[32,16]"])
        return
    labels = ["data.attribute=Smiling"] if (model, data) == ("classifier", "celeba") else []
    check("train", [f"model={model}", f"data={data}", *labels])


@pytest.mark.parametrize("sde", options("sde"))
def test_a_classifier_composes_with_every_process(sde):
    check("train", ["model=classifier", f"sde={sde}"])


def test_every_data_set_gets_a_network_that_fits():
    for name in DATA:
        c = composed(f"data={name}")
        assert ("dimensions" in c["network"]) == (len(c["data"]["shape"]) == 1)
    assert "dimensions" not in composed("data=digits", "network=unet")["network"]  # the command line wins
    assert composed("data=cifar10", "optimizer.lr=1e-3")["optimizer"]["lr"] == 1e-3


def test_every_class_and_key_in_conf_exists():
    for path in CONF.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            if "_target_: diffusion_lab" in line:
                assert schema.parameters(line.split()[-1]) is not None, f"{path}: {line}"


def test_every_key_has_a_comment():
    """Each key of a component has a comment on its line, or is a section or a plain reference to another group."""
    for path in CONF.rglob("*.yaml"):
        if path.relative_to(CONF).parts[0] in ("recipe", "debug", "hydra", "experiment"):
            continue
        for line in path.read_text().splitlines():
            body = line.strip()
            plain_reference = body.endswith("}") and "${" in body
            if (
                not body
                or body.startswith(("#", "-", "_target_", "_partial_", "defaults"))
                or body.endswith(":")
                or plain_reference
            ):
                continue
            explained = "#" in body or body.split(":")[0] in ("name", "samples", "enabled", "sigma_max")
            assert explained, f"{path}: {line}"


REFUSED = [
    ("trainer.devcies=8", "did you mean trainer.devices?"),
    ("modle=ddpm", "did you mean model?"),
    ("data=digit", "did you mean digits?"),
    ("-m schedule=linear,cosin", "did you mean cosine?"),
    ("schedule=linear,cosine", "schedule=linear,cosine has several values: add -m"),
    ("model.output=epsilon", "must be one of eps, x0, v, score"),
    ("variance=large", "must be one of fixed_large, fixed_small"),
    ("optimizer.lr=-1", r"optimizer.lr=-1 must be in \(0, inf\)"),
    ("callback.ema.decay=1.5", r"must be in \[0, 1\)"),
    ("network.dropout=1", r"must be in \[0, 1\)"),
    ("model.levels=abc", "must be int"),
    ("+model.foo=1", "not a parameter of diffusion_lab.model.DDPM"),
    ("paths.run_dir=/tmp/x", r"it is set when a run starts; choose it with hydra\.run\.dir"),
    ("loss.weighting=minsnr", r"did you mean min_snr\?"),
    ("sampler=ddim sampler.predictor.eta=2", r"must be in \[0, 1\]"),
    ("sampler.steps=2000", "more than the model's 1000 levels"),
    ("data.batch_size=100 trainer.devices=8", "split evenly over 8 devices"),
    ("schedule=geometric schedule.sigma_min=60", "must be less than schedule.sigma_max"),
    ("network.attention=[5]", r"only \[8, 4\]"),
    ("network=mlp", "such as network=unet_small"),
    ("data=toy2d network=unet_small", "use network=mlp"),
    ("data=image_folder", "data.root must be given"),
    ("optimizer._target_=os.system", "refused"),
    ("network._target_=diffusion_lab.network.Nothing", "does not exist"),
    ("trainer.precision=bf16", "did you mean bf16-true"),
    ("seed=-1", r"must be in \[0, 9223372036854775807\]"),
    ("sampler=trained", "choose ancestral, ddim"),
]


@pytest.mark.parametrize("arguments, message", REFUSED, ids=[a for a, _ in REFUSED])
def test_mistakes_are_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        check("train", [w for w in arguments.split() if w != "-m"], sweep="-m" in arguments)
    assert "\n" not in str(error.value)


def test_only_our_networks_are_refused_by_the_shape_of_the_data():
    config = {"data": {"shape": [2]}, "network": {"_target_": "my_networks.Plain", "width": 8}}
    check_network_fits_data(config)
    config["network"]["_target_"] = "diffusion_lab.network.UNet"
    with pytest.raises(ConfigError, match="use network=mlp"):
        check_network_fits_data(config)


def test_refusal_is_quick_with_exit_code_2_and_starts_nothing(tmp_path):
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "train.py"), "trainer.devcies=8", f"paths.log_dir={tmp_path}/logs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and time.perf_counter() - start < 5
    assert done.stderr.startswith("error: trainer.devcies is not a key") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_is_useful_and_needs_no_torch(tmp_path):
    code = "import sys; sys.argv = ['train.py', '--help']; import runpy\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in (
        "schedule",
        "cosine",
        "toy2d",
        "python train.py model=ddpm data=cifar10 trainer.devices=8",
        "max_steps",
    ):
        assert word in done.stdout


def test_sample_needs_a_checkpoint_and_refuses_unknown_keys():
    with pytest.raises(ConfigError, match="ckpt_path must be given"):
        check("sample", [])
    with pytest.raises(ConfigError, match="did you mean num_samples"):
        check("sample", ["ckpt_path=last", "num_sample=3"])
    with pytest.raises(ConfigError, match="must be one of ema, raw"):
        check("sample", ["ckpt_path=last", "weights=best"])
    check("sample", ["ckpt_path=last", "sampler=ddim", "sampler.steps=20"])
    check("sample", ["ckpt_path=last", "sampler.steps=20"])
