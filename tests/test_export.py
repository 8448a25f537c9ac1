"""Exported models: read back bit-equal, the same images in diffusers, and what is damaged or has no counterpart."""

from __future__ import annotations

import http.server
import json
import math
import struct
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
import zygote
from test_interop import quick  # noqa: F401 (composes each configuration once)
from torch import nn

import diffusion_lab
from diffusion_lab.config.init_source import missing_source
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.errors import ConfigError
from diffusion_lab.interop import diffusers, diffusers_adm, diffusers_ncsnpp
from diffusion_lab.noise import image_generators
from diffusion_lab.run import export_command, import_command
from diffusion_lab.run.export import chosen, export, shared
from diffusion_lab.run.import_checkpoint import build, contents, import_checkpoint, training
from diffusion_lab.run.initial import initialise
from diffusion_lab.storage import hub, safetensors_file
from diffusion_lab.storage.checkpoint_file import AtomicCheckpointIO
from diffusion_lab.storage.run_directory import CheckpointError, find

CPU = torch.device("cpu")


def checkpoint(folder: Path, *overrides: str, classes: int | None = None) -> Path:
    """A checkpoint of step 5 with random weights, whose EMA weights are others."""
    settings = training(["data=digits", *overrides])
    if classes:
        settings["model"]["network"]["classes"] = classes
        settings["model"]["labels"] = {"_target_": "diffusion_lab.model.Labels", "counts": [2] * classes}
    model = build(settings)
    torch.manual_seed(0)
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, 0, 0.08 if parameter.dim() > 1 else 0.2)
    average = {name: 0.9 * p.detach() for name, p in model.network.named_parameters()}
    path = folder / "run/checkpoints/step_00000005.ckpt"
    AtomicCheckpointIO().save_checkpoint(contents(model, average, 5, settings), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(a checkpoint with results, its export)."""
    root = tmp_path_factory.mktemp("exported")
    path = checkpoint(root, "model=edm", "data.seed=3", "sampler_steps=3")
    metric = {"value": 1.5, "standard_error": 0.1, "protocol": {"samples": 256, "reference": "digits held_out"}}
    results = {"step": 5, "weights": "ema", "sampler": "heun (steps=18)", "nfe": 35.0, "metrics": {"fd_digits": metric}}
    path.parents[1].joinpath("results.json").write_text(json.dumps(results))
    export_command.main([str(path.parents[1])])
    return path, path.parents[1] / "export/safetensors/model.safetensors"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_an_exported_model_samples_bit_equally(tmp_path, weights):
    path = checkpoint(tmp_path, "model=edm")  # whose sampler has an infinite setting
    export(path, "safetensors", tmp_path / "out", weights)
    assert json.loads(safetensors_file.header(tmp_path / "out/model.safetensors")["__metadata__"]["diffusion_lab"])
    ours = diffusion_lab.load(path, weights=weights).sample(2, steps=3)
    for place in (tmp_path / "out", tmp_path / "out/model.safetensors"):
        assert torch.equal(diffusion_lab.load(place).sample(2, steps=3), ours)
    assert diffusion_lab.load(tmp_path / "out").sampler.predictor.s_max == math.inf
    other = {"ema": "raw", "raw": "ema"}[weights]
    with pytest.raises(ConfigError, match=rf"holds {weights} weights alone: say weights={weights}"):
        export(tmp_path / "out/model.safetensors", "safetensors", tmp_path / "again", other)
    assert not (tmp_path / "again").exists()


def test_through_the_commands(exported, tmp_path, capsys):
    path, file = exported
    words = ("num_samples=2", "sampler.steps=2", "trainer.accelerator=cpu")
    done = [
        zygote.run("-m", "diffusion_lab.sample", f"ckpt_path={place}", *words, f"out={tmp_path / name}")
        for name, place in (("run", path), ("export", file))
    ]
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    assert (tmp_path / "run/samples.npz").read_bytes() == (tmp_path / "export/samples.npz").read_bytes()
    import_command.main([str(file.parent), f"out={tmp_path / 'imported'}"])
    again = torch.load(find(tmp_path / "imported"), weights_only=True)
    wanted = torch.load(path, weights_only=True)["ema"]["weights"]
    assert again["global_step"] == 5 and all(torch.equal(again["ema"]["weights"][k], w) for k, w in wanted.items())
    refused = zygote.run("-m", "diffusion_lab.interop", file, "out=")
    assert refused.returncode == 2 and refused.stderr.startswith("error: out= is empty: give a folder, such as")
    with pytest.raises(ConfigError, match="leave out model=ddpm"):
        import_checkpoint(str(file), ["model=ddpm"], str(tmp_path / "other"))


def test_the_card_says_what_was_measured(exported, tmp_path):
    path, file = exported
    card = file.with_name("README.md").read_text()
    assert "| fd_digits | 1.5 ± 0.1 | 256 | heun | 35.0 | digits held_out |" in card
    assert (
        "imported by diffusion_lab" in card
        and "its EMA weights after 5 steps" in card
        and "library_name: diffusion_lab" in card
    )
    assert 'diffusion_lab.load(".")' in card and "_target_: diffusion_lab.network.UNet" in card
    export(path, "safetensors", tmp_path / "raw", "raw", push=None)
    assert "Not evaluated." in (tmp_path / "raw/README.md").read_text()  # the results are those of the EMA weights


def test_nothing_of_this_machine_is_shared():
    found = shared(
        {
            "model": {"guidance": {"ckpt_path": "weak"}, "loss": {"teacher": {"ckpt_path": "/home/me/run"}}},
            "data": {"root": "~/photos", "name": "a/b"},
            "overrides": ["data.root=/home/me", "seed=1"],
            "started": {"directory": "/home/me", "packages": [], "seal": "x"},
            "logger": {"wandb": {"entity": "me"}},
        }
    )
    assert found["data"] == {"root": None, "name": "a/b"} and found["overrides"] == ["seed=1"]
    assert found["model"] == {"guidance": {}, "loss": {"teacher": {"ckpt_path": None}}}
    assert not found["started"] and not found["logger"]


def damaged(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def described(text: str) -> bytes:
    return damaged(json.dumps({"__metadata__": {"diffusion_lab": text}}).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (damaged(b"{}", 1 << 60), "a header of 1,152,921,504,606,846,976 bytes is announced"),
        (damaged(b"[" * 100_000), "not a safetensors file"),
        (damaged(b"[]"), "its header is not a table"),
        (damaged(b"{}"), "weights without their configuration"),
        (described("{"), "holds no configuration"),
        (described("[" * 100_000), "holds no configuration"),
        (described('{"config": {"model": 1}, "step": 1}'), "holds no configuration"),
        (described('{"config": {"model": {"_target_": "os.system"}}, "step": 1}'), "os.system"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        diffusion_lab.load(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_truncated_export_is_refused_in_one_line(exported, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(exported[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged: ") as error:
        diffusion_lab.load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "ckpt_path=nowhere does not exist"),
        (["format=diffusers"], "give the run first"),
        (["RUN", "format=onnx"], "format=onnx must be one of safetensors, diffusers"),
        (["RUN", "weight=raw"], "weight=raw is not an argument: use format=..., weights=..., out=..., push=..."),
        (["RUN", "sampler=ddim"], "sampler=ddim chooses the scheduler of format=diffusers"),
        (["RUN", "format=diffusers", "sampler.steps=3"], "name it by sampler=..."),
        (["RUN", "format=diffusers", "sampler=dim"], "sampler=dim"),
        (["RUN", "out=RUN"], "exists already"),
        (["RUN", "push=name"], "write push=user/name"),
        (["RUN", "push=user/name"], "push=user/name: not logged in to the Hugging Face Hub; run hf auth login"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_expensive(exported, monkeypatch, capsys, words, message):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    run = str(exported[0].parents[1])
    with pytest.raises(SystemExit) as exit_:
        export_command.main([word.replace("RUN", run) for word in words])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and message in said and said.count("\n") == 1


def test_a_folder_is_pushed_by_the_hubs_client(exported, monkeypatch, capsys, tmp_path):
    done = []

    class Api:
        def whoami(self):
            done.append("login")

        def create_repo(self, name, exist_ok):
            return f"https://huggingface.co/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            done.extend([repo_id, *sorted(path.name for path in folder_path.iterdir()), commit_message])

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    export_command.main([str(exported[0]), f"out={tmp_path / 'out'}", "push=user/name"])
    assert done == ["login", "user/name", "README.md", "model.safetensors", "Step 5, ema weights"]
    assert "uploaded to https://huggingface.co/user/name" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert "ckpt_path=hub:user/name" in card and 'diffusion_lab.load("hub:user/name")' in card
    monkeypatch.setattr(Api, "whoami", lambda self: 1 / 0)
    with pytest.raises(ConfigError, match="login to the Hugging Face Hub fails: division by zero"):
        hub.check_login("user/name")


@pytest.fixture
def cached(exported, tmp_path, monkeypatch):
    """The Hub's cache with the repositories me/ours, an export, and me/none, which is empty."""
    from huggingface_hub import constants

    for name in ("ours", "none"):
        folder = tmp_path / f"hub/models--me--{name}"
        for place in ("refs", "snapshots/abc"):
            (folder / place).mkdir(parents=True)
        (folder / "refs/main").write_text("abc")
    (tmp_path / "hub/models--me--ours/snapshots/abc/model.safetensors").symlink_to(exported[1])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_repository_is_loaded_and_imported(cached, exported, tmp_path, monkeypatch):
    assert torch.equal(
        diffusion_lab.load("hub:me/ours").sample(1, steps=2), diffusion_lab.load(exported[1]).sample(1, steps=2)
    )
    import_command.main(["hub:me/ours", f"out={tmp_path / 'run'}"])
    assert diffusion_lab.load(tmp_path / "run").config["model"]["sigma_data"] == 0.5
    for name, message in (
        ("none", "holds none of the files"),
        ("other", "cannot be downloaded"),
        ("x/y", "write hub:"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            diffusion_lab.load(f"hub:me/{name}")
        assert "\n" not in str(error.value)


ADM = ("network.channels=32", "network.multipliers=[1,2]")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download of one repository asks for."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        tree = [{"type": "file", "path": n, "size": len(b), "oid": "b" * 40} for n, b in self.files.items()]
        api = {"sha": "a" * 40, "id": "me/ours", "siblings": [{"rfilename": name} for name in self.files]}
        found = {f"/me/ours/resolve/{'a' * 40}/{name}": content for name, content in self.files.items()}
        found |= {f"/api/models/me/ours/{place}": json.dumps(answer).encode()
                  for place, answer in (("revision/main", api), (f"tree/{'a' * 40}", tree))}  # fmt: skip
        self.send_response(200 if path in found else 404)
        headers = {"Content-Length": len(found.get(path, b"")), "ETag": "b" * 40, "X-Repo-Commit": "a" * 40}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found.get(path, b""))

    do_HEAD = do_GET


def test_sampling_downloads_a_repository(exported, tmp_path):
    Hub.files = {"model.safetensors": exported[1].read_bytes(), "README.md": b"a card"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = ("num_samples=2", "sampler.steps=2", "trainer.accelerator=cpu", f"out={tmp_path / 'out'}")
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    done = zygote.run("-m", "diffusion_lab.sample", "ckpt_path=hub:me/ours", *words, **place)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    ours = diffusion_lab.load(exported[1]).sample(2, steps=2)
    written = torch.from_numpy(np.load(tmp_path / "out/samples.npz")["arr_0"]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(written, ours, rtol=0, atol=1 / 255)
    assert not list((tmp_path / "hub").rglob("README.md"))  # nothing but the weights is downloaded


def test_a_training_begins_with_an_export(exported, capsys):
    model = diffusion_lab.load(exported[1])
    given = {**model.config, "paths": {"log_dir": "logs"}, "init_from": str(exported[1])}
    wanted = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    nn.init.zeros_(model.network.conv_in.weight)
    initialise(model, given)
    assert all(torch.equal(weight, wanted[name]) for name, weight in model.network.state_dict().items())
    assert "initialised from the ema weights of step 5" in capsys.readouterr().out
    assert missing_source({"init_from": "hub:me/ours"}) is None
    assert "write hub:user/name" in missing_source({"init_from": "hub:ours"})


RGB = ("data=patches", "data.shape=[3,8,8]", "metric=digits", "network=unet_small")
PIPELINES = {
    "ancestral": (["model.output=v"], ["sampler=ancestral", "sampler.steps=20"], "DDPMScheduler"),
    "fixed_large": (
        ["variance=fixed_large"],
        ["sampler=ancestral", "sampler.spacing=linspace", "sampler.steps=20"],
        "DDPMScheduler",
    ),
    "ddim": (["model.output=x0", "schedule=cosine"], ["sampler=ddim", "sampler.spacing=trailing"], "DDIMScheduler"),
    "eta": ([], ["sampler=ddim", "sampler.predictor.eta=0.7", "sampler.clip=true"], "DDIMScheduler"),
    "heads": (["network.heads=2", "model.output=v"], ["sampler=ddim", "sampler.steps=10"], "DDIMScheduler"),
    "dpm": (
        ["model.output=v"],
        ["sampler=dpm_solver", "sampler.spacing=trailing"],
        "DPMSolverMultistepScheduler",
    ),
    "sde": (["model.output=v"], ["sampler=dpm_solver_sde", "sampler.spacing=trailing"], "DPMSolverMultistepScheduler"),
    "flow": (["model=flow"], [], "FlowMatchEulerDiscreteScheduler"),
    "adm": (
        [*ADM, "model=adm", "network.attention=[4]", "network.head_channels=16"],
        ["sampler=ancestral", "sampler.steps=20", "variance=learned_range"],
        "DDPMScheduler",
    ),
    "iddpm": (
        [
            "model=iddpm",
            "model.output=v",
            "network.channels=32",
            "network.heads=2",
            "network.new_attention_order=false",
        ],
        ["sampler=ddim", "sampler.clip=true"],
        "DDIMScheduler",
    ),
    "adm_flow": (
        [*ADM, "model=flow", "network=adm_small", "network.scale_shift=false"],
        [],
        "FlowMatchEulerDiscreteScheduler",
    ),
    "euler": ([*RGB, "model=edm"], ["sampler=euler"], "EDMEulerScheduler"),
    "edm": ([*RGB, "model=edm"], ["sampler=dpm_solver", "sampler.spacing=karras"], "EDMDPMSolverMultistepScheduler"),
}
"""Name -> (the model, its sampler, the scheduler)."""


def called(folder: Path, **more) -> torch.Tensor:
    """Images of the pipeline in a folder, as its card calls it."""
    theirs = pytest.importorskip("diffusers")
    theirs.utils.logging.disable_progress_bar()
    pipeline = theirs.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    (words,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("images = ")]
    scope = {"pipeline": lambda **given: pipeline(**{**given, "batch_size": 2, **more, "output_type": "np"})}
    exec(words, scope)
    return torch.from_numpy(scope["images"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", PIPELINES)
def test_diffusers_makes_the_same_images_from_the_same_noise(name, tmp_path):
    overrides, sampler, scheduler = PIPELINES[name]
    path = checkpoint(tmp_path, *overrides)
    export(path, "diffusers", tmp_path / "out", "ema", sampler)
    assert json.loads((tmp_path / "out/model_index.json").read_text())["scheduler"] == ["diffusers", scheduler]
    model = diffusion_lab.load(path)
    if sampler:
        model.sampler = instantiate(chosen(sampler, model.config), "sampler")
    with torch.no_grad():
        x = model.prepare_sampling(model.sampler, 2)(image_generators(3, range(2), CPU))
    ours = ((x + 1) / 2).clamp(0, 1)
    assert ours.std() > 0.03 and ((ours > 0) & (ours < 1)).float().mean() > 0.5
    more = {}
    if "model=edm" in overrides:  # there it starts from noise of variance sigma_max^2 + 1
        noise = torch.stack([torch.randn(model.shape, generator=g) for g in image_generators(3, range(2), CPU)])
        more = {"latents": noise * 80 / math.sqrt(80**2 + 1)}
    theirs = called(tmp_path / "out", generator=image_generators(3, range(2), CPU), **more)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


VE = (
    *("data=patches", "data.shape=[3,8,8]", "metric=digits", "model=score_sde", "sde=ve", "sigma_max=0.3"),
    *("network=ncsnpp", "network.blocks=1", "network.multipliers=[1,1]", "network.attention=[4]"),
    *("network.progressive=output_skip", "network.progressive_input=input_skip"),
)


def test_ncsnpp_in_diffusers(tmp_path):
    """The score is that of our network; its sampler is at other noise levels, by about 1e-4."""
    path, sampler = checkpoint(tmp_path, *VE), ["sampler=pc", "sampler.corrector.norm=batch", "sampler.steps=5"]
    export(path, "diffusers", tmp_path / "out", "ema", sampler)
    model, unet = diffusion_lab.load(path), pytest.importorskip("diffusers").UNet2DModel
    x, sigma = torch.rand(2, 3, 8, 8), torch.tensor([0.02, 0.3])
    with torch.no_grad():
        theirs = unet.from_pretrained(tmp_path / "out/unet")(x, sigma).sample
        ours = model.network(2 * x - 1, sigma.log()) / sigma[:, None, None, None]
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
        model.sampler = instantiate(chosen(sampler, model.config), "sampler")
        images = model.prepare_sampling(model.sampler, 2)(image_generators(3, range(2), CPU)).clamp(0, 1)
    assert ((images > 0) & (images < 1)).float().mean() > 0.3
    theirs = called(tmp_path / "out", generator=image_generators(3, range(2), CPU))
    torch.testing.assert_close(theirs, images, rtol=0, atol=2e-4)
    back = diffusers_ncsnpp.unet(model.network, diffusers_ncsnpp.to_unet2d(model.network))
    assert all(torch.equal(back[name], weight) for name, weight in model.network.state_dict().items())


def test_a_class_conditional_model_in_diffusers(tmp_path):
    path = checkpoint(tmp_path, "model.output=v", classes=3)
    export(path, "diffusers", tmp_path / "out", "ema", ["sampler=ddim", "sampler.steps=10"])
    model = diffusion_lab.load(path)
    model.sampler.steps, model.sampler.clip = 10, False
    model.sampler = instantiate(chosen(["sampler=ddim", "sampler.steps=10"], model.config), "sampler")
    bound = model.sampling_denoiser(torch.tensor([2, 1]), None, None, range(2))
    with torch.no_grad():
        x = model.prepare_sampling(model.sampler, 2, bound)(image_generators(3, range(2), CPU))
    more = {"generator": image_generators(3, range(2), CPU), "class_labels": [2, 1]}
    torch.testing.assert_close(called(tmp_path / "out", **more), ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_weights_come_back_from_diffusers(tmp_path):
    path = checkpoint(tmp_path, "model.output=v")
    export(path, "diffusers", tmp_path / "out", "raw", ["sampler=ddim"])
    back = import_checkpoint(str(tmp_path / "out"), ["data=digits", "model.output=v"], str(tmp_path / "back"))
    model, other = (diffusion_lab.load(place, weights="raw") for place in (path, back))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    iddpm = ("model=iddpm", "network.channels=32", "network.heads=2", "network.new_attention_order=false")
    for module, overrides in ((diffusers, ()), (diffusers_adm, iddpm)):
        network = diffusion_lab.load(checkpoint(tmp_path / module.__name__, *overrides, classes=2)).network
        again = module.unet(network, module.to_unet2d(network))
        assert again.keys() == network.state_dict().keys()
        assert all(torch.equal(again[name], weight) for name, weight in network.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "sampler", "message"),
    [
        (["model=edm"], [], "no scheduler for Heun's method with EDM's preconditioning"),
        (["model=consistency"], [], "no scheduler for Consistency of VE with output=edm"),
        ([], ["sampler=heun"], "DiscreteProcess with output=eps; of this process it has one for Ancestral, DDIM"),
        (["model=score_sde"], [], "no scheduler for EulerMaruyama of VP with output=eps"),
        (["model=score_sde", "sde=ve"], [], "set sampler.corrector.norm=batch"),
        ([], ["sampler=ode"], "no scheduler for ProbabilityFlow of DiscreteProcess"),
        ([], ["sampler=ddim", "sampler.steps=30", "sampler.spacing=trailing"], "which do not divide 1000 levels"),
        ([], ["sampler=ddim", "sampler.spacing=quadratic"], "choose sampler.spacing=leading, trailing"),
        ([], ["sampler=dpm_solver"], "choose sampler.spacing=leading, trailing, linspace"),
        ([], ["sampler=ddim", "sampler.denoise=false"], "no scheduler with sampler.denoise=False"),
        (["model=flow"], ["sampler=flow_euler", "sampler.spacing=quadratic"], "use sampler=flow_euler"),
        (["network.up_attention=last"], [], "network.up_attention=last"),
        (["model=iddpm"], [], "norms of [8, 16] groups"),
        ([*VE, "network.progressive=none"], ["sampler=pc", "sampler.corrector.norm=batch"], "network.progressive=none"),
        (["model=score_sde", "sde=ve"], ["sampler=pc", "sampler.corrector.norm=batch"], "NCSN++ goes with"),
        (
            ["network=ncsnpp", "network.channels=32", "network.multipliers=[1,1]", "network.attention=[4]"],
            [],
            "no DDPMPipeline with our NCSNpp",
        ),
    ],
)
def test_what_diffusers_has_not_is_named(overrides, sampler, message, tmp_path):
    path = checkpoint(tmp_path, *overrides)
    with pytest.raises(ConfigError, match="choose format=safetensors") as error:
        export(path, "diffusers", tmp_path / "out", "ema", sampler)
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_plain_file_of_weights_is_named_as_such(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="convert it by diffusion-lab import"):
        diffusion_lab.load(tmp_path)
