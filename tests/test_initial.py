"""Fine-tuning: a training that begins at step 0 with the weights of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zygote
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_interop import MODELS, SMALL, listed, official

from diffusion_lab.config import resume
from diffusion_lab.config.init_source import fetched, missing_source
from diffusion_lab.errors import ConfigError
from diffusion_lab.interop import files
from diffusion_lab.network import MLP, UNet
from diffusion_lab.run import import_checkpoint, initial

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("data=toy2d", "network=mlp", "logger=csv", "debug=fast", "trainer.accelerator=cpu", "sampler_steps=2"),
    *("trainer.val_check_interval=null", "callback.samples.every_n_steps=null", "callback.evaluation.at_end=false"),
    *("trainer.max_steps=2", "callback.checkpoint.every_n_steps=1", "callback.checkpoint.keep=null"),
)


def train(*words: str, cwd: Path, code: int = 0) -> str:
    done = zygote.run(ROOT / "train.py", *words, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a run of two steps."""
    root = tmp_path_factory.mktemp("initial")
    train(*TINY, "hydra.run.dir=first", cwd=root)
    return root


def contents(run: Path, step: int) -> dict:
    return torch.load(run / f"checkpoints/step_{step:08d}.ckpt", weights_only=True)


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_weights_alone_are_taken_and_the_optimiser_begins_anew(trained, which):
    given = contents(trained / "first", 2)
    said = train(*TINY, "init_from=first", f"init_weights={which}", "optimizer.lr=1e-30", "data.name=moons",
                 f"hydra.run.dir={which}", cwd=trained)  # fmt: skip
    file = trained / "first/checkpoints/step_00000002.ckpt"
    assert f"initialised from the {which} weights of step 2 of first/checkpoints/step_00000002.ckpt, step 0" in said
    assert "training 2 steps" in said
    after = contents(trained / which, 2)
    names = given["ema"]["weights"]
    source = {
        k: given["ema"]["weights"][k] if which == "ema" else given["state_dict"][f"denoiser.network.{k}"] for k in names
    }
    for name, weight in source.items():  # at a rate of nothing, they stay what they were; so does their average
        torch.testing.assert_close(after["state_dict"][f"denoiser.network.{name}"], weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(after["ema"]["weights"][name], weight, rtol=1e-6, atol=1e-7)
    assert after["global_step"] == 2 and after["ema"]["updates"] == 2
    assert OmegaConf.load(trained / which / "config.yaml").init_from == str(file.resolve())


def test_such_a_run_goes_on_as_any_other_although_the_file_is_gone(trained):
    (trained / "gone").mkdir(exist_ok=True)
    source = trained / "gone/weights.ckpt"
    source.write_bytes((trained / "first/checkpoints/step_00000002.ckpt").read_bytes())
    train(*TINY, "init_from=gone/weights.ckpt", "hydra.run.dir=again", cwd=trained)
    source.unlink()
    said = train("ckpt_path=again", "trainer.max_steps=3", "decay_steps=3", cwd=trained)
    assert "resumes from step 2" in said and "initialised from" not in said
    assert OmegaConf.load(trained / "again/config.yaml").init_from == str(source)


@pytest.mark.parametrize(
    "words, message",
    [
        (["init_from=first", "ckpt_path=first"], "give one of them"),
        (["init_from=nowhere.pth"], "init_from=nowhere.pth does not exist"),
        (["init_from=hf://user/repository"], "write hf://user/repository/file"),
        (["init_from=first", "init_weights=average"], "must be one of ema, raw"),
        (["init_from=first", "network.width=24"], "init_strict=false initialises these at random"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_in_one_line(trained, words, message):
    said = train(*TINY, *words, "hydra.run.dir=refused", cwd=trained, code=2)
    assert message in said and said.count("error: ") == 1 and "Traceback" not in said
    assert not (trained / "refused/checkpoints").exists()


def unet(channels: int, size: int = 8) -> UNet:
    torch.manual_seed(channels)
    return UNet(channels, size, channels=32, multipliers=(1, 2), blocks=1, attention=(size // 2,))


def settings(**given) -> dict:
    return {"init_weights": "ema", "init_strict": True, "paths": {"log_dir": "logs"}, **given}


class Holder:
    """As much of a model as its network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network


def test_what_does_not_fit_is_named_and_left_out_only_on_request(tmp_path, capsys):
    save_file(unet(1).state_dict(), tmp_path / "grey.safetensors")
    colour = unet(3)
    before = {name: tensor.clone() for name, tensor in colour.state_dict().items()}
    given = settings(init_from=str(tmp_path / "grey.safetensors"))
    with pytest.raises(
        ConfigError,
        match=r"has shape \(32, 1, 3, 3\) in the file and \(32, 3, 3, 3\) in the network.*init_strict=false",
    ):
        initial.initialise(Holder(colour), dict(given))
    assert all(torch.equal(tensor, before[name]) for name, tensor in colour.state_dict().items())
    initial.initialise(Holder(colour), {**given, "init_strict": False})
    said, grey = capsys.readouterr().out, unet(1).state_dict()
    left = [name for name, tensor in before.items() if tensor.shape != grey[name].shape]
    assert left and all(repr(name) in said for name in left), said
    for name, tensor in colour.state_dict().items():
        assert torch.equal(tensor, before[name] if name in left else grey[name]), name
    other = MLP(2, 8)
    with pytest.raises(ConfigError, match="nothing fits|match none of the layouts"):
        initial.initialise(Holder(other), {**given, "init_strict": False})


def test_another_size_of_images_fits_where_the_network_has_the_same_layers(tmp_path, capsys):
    torch.save(unet(1, size=8).state_dict(), tmp_path / "small.pt")
    large = unet(1, size=16)
    torch.nn.init.zeros_(next(large.parameters()))
    initial.initialise(Holder(large), settings(init_from=str(tmp_path / "small.pt")))
    assert all(torch.equal(large.state_dict()[k], v) for k, v in unet(1).state_dict().items())


def test_weights_of_another_program_are_read_as_an_import_reads_them(recorded, tmp_path, capsys):
    record = recorded("net_ddim_small")
    raw, average = official(record), official(record, seed=1)
    file = tmp_path / "ckpt.pth"
    listed(file, record, raw, average)
    overrides = [*MODELS["ddim"][0], *SMALL]
    imported, kept = (
        import_checkpoint.build(given := import_checkpoint.training(overrides)),
        files.find(files.read(file)),
    )
    _, averaged = import_checkpoint.fill(imported, kept, file, given)
    averages = {**imported.network.state_dict(), **averaged}
    for which, wanted in (("raw", dict(imported.network.named_parameters())), ("ema", averaged)):
        begun = import_checkpoint.build(given)
        initial.initialise(begun, {**given, "init_from": str(file), "init_weights": which})
        for name, parameter in begun.network.named_parameters():
            torch.testing.assert_close(parameter, wanted[name], rtol=0, atol=0, check_stride=False)
    assert "initialised from the ema weights (a checkpoint of NCSNv2 or DDIM) of" in capsys.readouterr().out
    small = import_checkpoint.build({**given, **import_checkpoint.training([*overrides, "network.channels=64"])})
    with pytest.raises(ConfigError, match="does not fit this network.*add init_strict=false"):
        initial.initialise(small, {**given, "init_from": str(file)})
    before = {name: weight.clone() for name, weight in small.network.state_dict().items()}
    capsys.readouterr()
    initial.initialise(small, {**given, "init_from": str(file), "init_strict": False})
    now, said = small.network.state_dict(), capsys.readouterr().out
    same = [name for name in now if imported.network.state_dict()[name].shape == now[name].shape]
    assert same and len(same) < len(now) and "randomly initialised, because they do not fit: " in said
    for name, weight in now.items():
        torch.testing.assert_close(
            weight, averages[name] if name in same else before[name], rtol=0, atol=0, check_stride=False
        )


def test_a_hub_file_is_fetched_by_its_own_client(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: f"{tmp_path}/{repo}/{file}")
    assert fetched("hf://user/repository/a/b.pth") == tmp_path / "user/repository/a/b.pth"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="cannot be downloaded: division by zero"):
        fetched("hf://user/repository/b.pth")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "needs huggingface_hub" in missing_source({"init_from": "hf://user/repository/b.pth"})


def test_both_beginnings_are_refused_but_for_the_one_that_may_not_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume.training_arguments(["ckpt_path=auto", "hydra.run.dir=a", "init_from=b"]) == [
        "hydra.run.dir=a",
        "init_from=b",
    ]
    with pytest.raises(ConfigError, match="give one of them"):
        resume.training_arguments(["--multirun", "ckpt_path=a,b", "init_from=b"])
