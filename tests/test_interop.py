"""Official checkpoints in, through the command: files in every official layout, written from recorded networks."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import safetensors.torch
import torch
import zygote
from analytic import recipe_weights
from hostile import Hostile
from omegaconf import DictConfig
from reference.record_adm import weights_of
from torch import Tensor

import diffusion_lab
from diffusion_lab.config import origin, refusals
from diffusion_lab.guidance import ClassifierGuidance
from diffusion_lab.interop.__main__ import main
from diffusion_lab.interop.diffusers import check_settings
from diffusion_lab.interop.files import NUMPY, find, read
from diffusion_lab.network import UNet
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, NoiseProcess
from diffusion_lab.run.import_checkpoint import noise_differs

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data=patches", "data.shape=[3,16,16]", "metric=digits"]
SIZES = ["network.channels=32", "network.multipliers=[1,2]", "network.attention=[8]", "network.blocks=1"]
SIGMAS = {"ncsnpp": (50, 0.01, 1000), "ncsnv2": (50, 0.01, 232)}
STEP = 7


@functools.cache
def compose_once(task: str, overrides: tuple[str, ...], return_hydra_config: bool) -> DictConfig:
    return hydra.compose(task, list(overrides), return_hydra_config)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hydra composes the same words once: it takes longer than all the rest of an import."""

    def remembered(task: str, overrides: list[str], return_hydra_config: bool = False) -> DictConfig:
        return copy.deepcopy(compose_once(task, tuple(overrides), return_hydra_config))

    monkeypatch.setattr(refusals, "compose", remembered)


def vp_time(cond: Tensor) -> Tensor:
    return cond / 999


def ve_time(cond: Tensor) -> Tensor:
    return (cond / 0.01).log() / np.log(50 / 0.01)


MODELS: dict[str, tuple[list[str], Callable[[Tensor], Tensor], str, float]] = {
    # official network: (overrides, conditioning -> time, our name of its output, tolerance)
    "ncsnpp": (["model=score_sde", "sde=ve", *SIZES], ve_time, "score", 2e-5),
    "ddpmpp": (["model=score_sde", "sde=vp", *SIZES], vp_time, "eps", 5e-6),
    "ddpm": (["model=score_sde", "sde=subvp", "network=ddpm_score_sde", *SIZES], vp_time, "eps", 5e-6),
    "ncsn": (["model=ncsn", "network=ncsn", "network.channels=16"], lambda c: 1 - c / 10, "score", 5e-6),
    "ncsnv2": (["model=ncsnv2", "network=ncsnv2", "network.channels=16"], lambda c: 1 - c / 232, "score", 5e-6),
    "ddim": (["model=ddpm", "network=unet", *SIZES, "network.blocks=2"], lambda c: (c + 1) / 1000, "eps", 5e-6),
}


def official(record, seed: int = 0) -> dict[str, Tensor]:
    """The weights of an official network, and the sigmas that lie beside them."""
    name = record.meta["about"].split()[3].removesuffix("_small")
    weights = recipe_weights(record.meta["layout"], seed=seed, kinds=record.meta["kinds"])
    if "all_modules.0.W" in weights:  # the frequencies are never trained, so that the average has none of its own
        weights |= recipe_weights([["all_modules.0.W", weights["all_modules.0.W"].shape]], 0, record.meta["kinds"])
    high, low, count = SIGMAS.get(name, (50, 0.01, 1000))
    sigmas = {"sigmas": torch.logspace(np.log10(high), np.log10(low), count, dtype=torch.float64)}
    own = "sigmas" in record.meta["kinds"]
    return OrderedDict(sigmas if own else {}) | {k: torch.from_numpy(v) for k, v in weights.items()}


def parallel(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((f"module.{name}", weight) for name, weight in weights.items())


def adam(weights: dict[str, Tensor], lr: object = 2e-4) -> dict:
    """State of torch.optim.Adam after a step."""
    parameters = [torch.nn.Parameter(weight) for weight in weights.values() if weight.dtype == torch.float32]
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    for parameter in parameters[:2]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    return optimizer.state_dict()


def score_sde(path: Path, record, raw: dict[str, Tensor], average: dict[str, Tensor]) -> None:
    shadow = [average[name] for name in record.meta["trainable_order"]]
    ema = {"decay": 0.999, "num_updates": STEP, "shadow_params": shadow}
    # The warm-up of the official program leaves a number of numpy as the learning rate.
    optimizer = adam(raw, 2e-4 * np.minimum(STEP / 5000, 1.0))
    assert type(optimizer["param_groups"][0]["lr"]) is np.float64
    torch.save({"optimizer": optimizer, "model": parallel(raw), "ema": ema, "step": STEP}, path)


def listed(path: Path, record, raw: dict[str, Tensor], average: dict[str, Tensor]) -> None:
    average = {name: average[name] for name in record.meta["trainable_order"]}
    states = [parallel(raw), adam(raw), 3, STEP, average]
    torch.save(states, path, _use_new_zipfile_serialization=False)


CASES = [
    # official network, container, which of its two sets is the recorded one
    ("ncsnpp", score_sde, "ema"),
    ("ncsnpp", score_sde, "raw"),
    ("ddpmpp", score_sde, "ema"),
    ("ddpm", score_sde, "ema"),
    ("ncsnv2", listed, "ema"),
    ("ncsnv2", listed, "raw"),
    ("ddim", listed, "ema"),
]


def imported(folder: Path, name: str, file: Path, *more: str) -> Path:
    main([str(file), *MODELS[name][0], *SMALL, f"out={folder / 'out'}", *more])
    return folder / "out"


def is_official(run: Path, name: str, record, weights: str) -> bool:
    """Whether the imported model gives the recorded output of the official network, within the tolerance."""
    _, time, output, tolerance = MODELS[name]
    model = diffusion_lab.load(run, weights=weights)
    errors = []
    # 1e-7: the official NCSNv2 divides by sigmas of float32.
    for dtype, bound in ((torch.float32, tolerance), (torch.float64, 1e-7)):
        truth = record[f"y_f{str(dtype)[-2:]}"]
        with torch.no_grad():
            estimate = model.to(dtype).denoiser(record["x"].to(dtype), time(record["cond"].double()))
        errors.append(((getattr(estimate, output) - truth).abs().max() / truth.abs().max()).item() / bound)
    return max(errors) < 1


# --------------------------------------------------------------------------- improved-diffusion, guided-diffusion

ADM = np.load(ROOT / "tests" / "reference" / "adm_networks.npz")
ADM_SIZES = ["network.channels=32", "network.blocks=1", "network.attention=[8,4]", "network.head_channels=16"]
OPENAI = {
    "iddpm": ["model=iddpm", *ADM_SIZES[:1], "network.multipliers=[1,2,2]", "network.blocks=2", ADM_SIZES[2]],
    "adm": ["model=adm", *ADM_SIZES, "network.multipliers=[1,2,3]"],
    "classifier": ["model=classifier", "schedule=cosine", *ADM_SIZES, "network.multipliers=[1,2,3]"],
}


def of_openai(folder: Path, name: str) -> Path:
    """A file as those programs write it: the weights of an EMA by name."""
    file = folder / "ema_0.9999_000007.pt"
    torch.save(weights_of(json.loads(str(ADM[f"{name}_shapes"]))), file)
    return file


@pytest.mark.parametrize("name", OPENAI)
def test_models_and_classifiers_of_openai_become_runs_of_ours(tmp_path, capsys, name):
    main(
        [
            str(of_openai(tmp_path, name)),
            *OPENAI[name],
            *SMALL[: 3 if name != "classifier" else 2],
            f"out={tmp_path / 'out'}",
        ]
    )
    said, model = capsys.readouterr().out, diffusion_lab.load(tmp_path / "out")
    labels = {"adm": 5, "classifier": 10}.get(name)
    assert (model.labels and model.labels.classes) == labels and (f"{labels} classes" in said) == bool(labels)
    x, t = torch.from_numpy(ADM["x"]), torch.from_numpy(ADM["t"])
    with torch.no_grad():
        out = model.network(x, t, *([torch.from_numpy(ADM["label"])] if name == "adm" else []))
    wanted = torch.from_numpy(ADM[f"{name}_out"])
    assert ((out - wanted).abs().max() / wanted.abs().max()).item() < 5e-6
    if name == "classifier":
        assert f"guidance=classifier guidance.ckpt_path={tmp_path / 'out'}\n" in said
        assert ClassifierGuidance(model).posterior.classes == 10


@pytest.mark.parametrize(
    "file, words, hint", [("adm", "classifier", "model=iddpm or adm"), ("classifier", "adm", "model=classifier")]
)
def test_a_model_is_no_classifier_of_openai(tmp_path, capsys, file, words, hint):
    with pytest.raises(SystemExit) as stopped:
        main([str(of_openai(tmp_path, file)), *OPENAI[words], *SMALL[:2], f"out={tmp_path / 'out'}"])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    assert re.search(f"these are weights of ADM, not of .*: add {hint}$", capsys.readouterr().err.strip())


# --------------------------------------------------------------------------- the containers


@pytest.mark.parametrize("name, write, which", CASES, ids=[f"{name}-{which}" for name, _, which in CASES])
def test_both_sets_of_weights_become_a_checkpoint_of_ours(recorded, tmp_path, capsys, name, write, which):
    record, other = recorded(f"net_{name}_small"), {"ema": "raw", "raw": "ema"}[which]
    sets = {which: official(record), other: official(record, seed=1)}
    write(tmp_path / "checkpoint_9.pth", record, sets["raw"], sets["ema"])
    run = imported(tmp_path, name, tmp_path / "checkpoint_9.pth")
    assert is_official(run, name, record, which) and not is_official(run, name, record, other)
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step_00000007.ckpt"]
    said = capsys.readouterr().out
    assert "step 7, with raw and EMA weights" in said and "warning" not in said
    assert f"{record.meta['notes']['parameters']:,} parameters" in said
    assert f"sample from it:  {origin.command('sample', run)}\n" in said


def test_ncsn_holds_one_set_of_weights_and_no_step(recorded, tmp_path, capsys):
    record = recorded("net_ncsn_small")
    weights = official(record)
    torch.save([parallel(weights), adam(weights)], tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
    run = imported(tmp_path, "ncsn", tmp_path / "checkpoint.pth")
    assert is_official(run, "ncsn", record, "ema") and is_official(run, "ncsn", record, "raw")
    said = capsys.readouterr().out
    assert "step unknown, with one set of weights" in said and "from the layout of NCSN\n" in said


def test_lists_without_an_average_and_plain_weights(recorded, tmp_path, capsys):
    record = recorded("net_ddim_small")
    weights = official(record)
    torch.save([parallel(weights), adam(weights), 3, STEP], tmp_path / "ckpt.pth")
    torch.save(OrderedDict(weights), tmp_path / "ema_cifar10.ckpt")
    torch.save(OrderedDict(weights), tmp_path / "ema_0.9999_250000.pt")
    for file, step in (
        ("ckpt.pth", "step 7"), ("ema_cifar10.ckpt", "step unknown"), ("ema_0.9999_250000.pt", "step 250,000"),
    ):  # fmt: skip
        run = imported(tmp_path, "ddim", tmp_path / file, f"out={tmp_path / file}.run")
        assert is_official(run.parent / f"{file}.run", "ddim", record, "ema")
        assert f"{step}, with one set of weights" in capsys.readouterr().out


# --------------------------------------------------------------------------- diffusers

NEW = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
RESIDUAL = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
ENDS = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "down.0.downsample": "down_blocks.0.downsamplers.0",
    "up.1.upsample": "up_blocks.0.upsamplers.0",
}


def diffusers(weights: dict[str, Tensor], attention: dict[str, str]) -> dict[str, Tensor]:
    """DDIM's weights of two levels as UNet2DModel lays them out: its attention is made of matrices."""
    out = {}
    for name, weight in weights.items():
        place, _, leaf = name.rpartition(".")
        block, _, layer = place.rpartition(".")
        if match := re.fullmatch(r"(down|up)\.(\d)\.(block|attn)\.(\d)", block):
            level = int(match[2]) if match[1] == "down" else 1 - int(match[2])
            kind = {"block": "resnets", "attn": "attentions"}[match[3]]
            new = f"{match[1]}_blocks.{level}.{kind}.{match[4]}"
        else:
            new = ENDS.get(block, block)
        if "attn" in block:
            weight = weight.flatten(1) if weight.dim() == 4 else weight
            layer = {**attention, "norm": "group_norm"}[layer]
        layer = RESIDUAL.get(layer, layer)
        out[f"{ENDS[place]}.{leaf}" if place in ENDS else f"{new}.{layer}.{leaf}".lstrip(".")] = weight.clone()
    return out


@pytest.mark.parametrize("attention", [NEW, OLD], ids=["new", "old"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_unets_of_diffusers(recorded, tmp_path, suffix, attention):
    record, file = recorded("net_ddim_small"), tmp_path / f"diffusion_pytorch_model.{suffix}"
    weights = diffusers(official(record), attention)
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(weights, file)
    run = imported(tmp_path, "ddim", file)
    assert is_official(run, "ddim", record, "ema") and is_official(run, "ddim", record, "raw")


def test_names_are_those_of_diffusers(recorded):
    """As the library prints them for google/ddpm-cifar10-32."""
    names = diffusers(official(recorded("net_ddim_small")), NEW)
    for name in (
        "time_embedding.linear_2.bias", "conv_in.weight", "down_blocks.0.resnets.1.time_emb_proj.weight",
        "down_blocks.0.downsamplers.0.conv.weight", "down_blocks.1.resnets.0.conv_shortcut.weight",
        "down_blocks.1.attentions.1.to_q.weight", "mid_block.attentions.0.to_out.0.bias",
        "mid_block.resnets.1.conv2.weight", "up_blocks.0.attentions.2.group_norm.weight",
        "up_blocks.0.upsamplers.0.conv.bias", "up_blocks.1.resnets.2.norm1.weight", "conv_norm_out.weight",
    ):  # fmt: skip
        assert name in names


HUB = {
    "act_fn": "silu", "attention_head_dim": None, "center_input_sample": False, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32,
    "time_embedding_type": "positional",
}  # fmt: skip
"""Of google/ddpm-cifar10-32."""


def test_settings_of_diffusers_that_no_name_tells(recorded, tmp_path, capsys):
    net, file, config = (
        UNet(3, 16, channels=32, multipliers=(1, 2)),
        tmp_path / "m.safetensors",
        tmp_path / "config.json",
    )
    check_settings(net, file)
    config.write_text(json.dumps(HUB))
    check_settings(net, file)
    with pytest.raises(ValueError, match="norm_num_groups=32, but our U-Net has norm_num_groups=16"):
        check_settings(UNet(3, 16, channels=32, multipliers=(1, 2), groups=16), file)
    for key in ("attention_head_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps"):
        config.write_text(json.dumps({k: v for k, v in HUB.items() if k != key}))  # the library's default is another
        with pytest.raises(ValueError, match=f"{key}=.*our U-Net has {key}="):
            check_settings(net, file)
    config.write_text(json.dumps(HUB | {"norm_num_groups": 8}))
    safetensors.torch.save_file(diffusers(official(recorded("net_ddim_small")), NEW), file)
    said = refused(capsys, str(file), *MODELS["ddim"][0], *SMALL)
    assert "has norm_num_groups=8, but our U-Net has norm_num_groups=32" in said


# --------------------------------------------------------------------------- what is refused


def refused(capsys, *arguments: str) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    said = capsys.readouterr()
    assert exit.value.code == 2 and said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return said.err


@pytest.mark.parametrize(
    "bomb, form",
    [
        (Hostile("exploded"), {}),
        (Hostile("exploded", [1], call=np.save), {"_use_new_zipfile_serialization": False}),
        (Hostile("import os; os.mkdir('exploded')", call=exec), None),
    ],
    ids=["zip", "before torch 1.6", "bare"],
)
def test_a_hostile_pickle_is_refused_and_not_executed(recorded, tmp_path, monkeypatch, capsys, bomb, form):
    monkeypatch.chdir(tmp_path)
    contents = [parallel(official(recorded("net_ncsn_small"))), {"lr": bomb}]
    if form is None:
        Path("a.pth").write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save(contents, "a.pth", **form)
    with pytest.raises(ValueError, match="a.pth is refused, and nothing in it was executed: it needs") as error:
        read(Path("a.pth"))
    if form == {}:
        assert str(error.value) in refused(capsys, "a.pth", *MODELS["ncsn"][0], *SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"] and "\n" not in str(error.value)
    assert not set(NUMPY) & set(torch.serialization.get_safe_globals())


def test_weights_of_half_precision_are_read_as_whole_ones():
    found = find([{"module.w": torch.ones(2).half()}, {}, 0, 3, {"module.w": torch.zeros(2).bfloat16()}])
    assert found.raw["w"].dtype == found.average["w"].dtype == torch.float32
    shadow = find({"model": {"w": torch.ones(2)}, "ema": {"shadow_params": [torch.ones(2).half()]}, "step": 1})
    assert shadow.average[0].dtype == torch.float32 and shadow.step == 1


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numpy_builds_nothing_of_what_a_file_asks_for(tmp_path, module):
    """Numbers of either numpy are passed over, not built: their type could be anything."""
    file = tmp_path / "a.pth"
    torch.save([{"w": torch.ones(2)}, {"lr": np.float64(0.5)}], file, _use_new_zipfile_serialization=False)
    written = file.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in written
    file.write_bytes(written.replace(b"numpy._core.multiarray", module.encode()))
    contents = read(file)
    assert find(contents).raw["w"].tolist() == [1, 1] and not isinstance(contents[1]["lr"], (np.generic, float))


HOLLOW = {
    "cut": "a.pth cannot be read, it is truncated or of another type: ",
    "empty": "a.pth cannot be read",
    "foreign": "a.pth is refused|a.pth cannot be read",
    "missing": "a.pth is not a file",
    "folder": "a.pth is not a file",
    "images": "not a checkpoint but a Tensor: expected one of ScoreSDE",
    "numbers": "'n' is not a tensor: expected one of ScoreSDE",
    "nothing": "it is empty: expected one of ScoreSDE",
}


@pytest.mark.parametrize("damage", HOLLOW)
def test_files_that_hold_no_weights(recorded, tmp_path, capsys, damage):
    file = tmp_path / "a.pth"
    torch.save([official(recorded("net_ncsn_small")), {}], file)
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage in ("cut", "empty", "foreign"):
        file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "foreign": b"GIF89a" * 40}[damage])
    elif damage != "missing":
        torch.save({"images": torch.ones(3), "numbers": {"n": 3}, "nothing": {}}[damage], file)
    with pytest.raises((ValueError, FileNotFoundError), match=HOLLOW[damage]) as error:
        find(read(file))
    assert "\n" not in str(error.value)
    if damage in ("cut", "images", "missing"):
        said = refused(capsys, str(file), *MODELS["ncsn"][0], *SMALL, f"out={tmp_path}/out")
        assert said.startswith(f"error: {file}") and str(error.value) in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["network.channels=24"], r"does not fit network=ncsn with network.channels=24.*has shape \(16, 3, 3, 3\)"),
        (["network.multipliers=[1,2]", "network.dilations=[1,1]"], "unexpected 'refine3.*choose another network="),
        (["model=ncsnv2", "network=ncsnv2"], "missing 'normalizer.alpha'.*unexpected"),
        (["model.levels=12"], r"normalizer.embed.weight' has shape \(10, 48\)"),
        (["network=unet", "network.channels=32"], "these are weights of NCSN, not of a UNet: add model=ncsn or ncsnv2"),
        (["network=ncsnplus"], "did you mean ncsnpp"),
        (["network.chanels=16"], "did you mean network.channels"),
        (["seed=1,2"], "seed=1,2 has several values"),
        (["-m"], "-m: train and sample sweep, interop takes one value"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_one_line(recorded, tmp_path, capsys, change, message):
    weights = official(recorded("net_ncsn_small"))
    torch.save([parallel(weights), adam(weights)], tmp_path / "a.pth")
    said = refused(capsys, str(tmp_path / "a.pth"), *MODELS["ncsn"][0], *SMALL, f"out={tmp_path}/out", *change)
    assert re.search(message, said) and not (tmp_path / "out").exists()


def test_long_complaints_of_torch_become_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.pth").touch()
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no archive\nframe #0")))
    with pytest.raises(ValueError, match=r"truncated or of another type: no archive$"):
        read(tmp_path / "a.pth")


def test_averages_that_do_not_fit(recorded, tmp_path, capsys):
    record = recorded("net_ddpm_small")
    weights = official(record)
    score_sde(tmp_path / "a.pth", record, weights, weights)
    contents = torch.load(tmp_path / "a.pth", weights_only=False)
    contents["ema"]["shadow_params"].pop()
    torch.save(contents, tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), *MODELS["ddpm"][0], *SMALL, f"out={tmp_path}/out"]
    count = len(record.meta["trainable_order"])
    assert f"its EMA has {count - 1} weights, but this network has {count} trained ones" in refused(capsys, *arguments)
    assert "give the checkpoint first" in refused(capsys, *arguments[1:])


def test_names_of_no_known_layout(tmp_path, capsys):
    torch.save({"encoder.weight": torch.ones(2)}, tmp_path / "a.pth")
    said = refused(capsys, str(tmp_path / "a.pth"), *MODELS["ddim"][0], *SMALL)
    assert "'encoder.weight' match none of the layouts NCSN, ScoreSDE, EDM, DDIM, ADM, diffusers" in said


def test_nothing_is_left_half_written_nor_overwritten(recorded, tmp_path, capsys, monkeypatch):
    weights, file = official(recorded("net_ncsn_small")), tmp_path / "a.pth"
    torch.save([weights, {}], file)
    arguments = [str(file), *MODELS["ncsn"][0], *SMALL, f"out={tmp_path}/out"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert "cannot be written: No space left" in refused(capsys, *arguments)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    main(arguments)
    before = (tmp_path / "out/checkpoints/step_00000000.ckpt").stat().st_mtime_ns
    assert "holds a checkpoint already" in refused(capsys, *arguments)
    assert (tmp_path / "out/checkpoints/step_00000000.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "high, levels, message", [(90, 232, "from 90 to 0.01 in 232"), (50, 9, "from 50 to 0.01 in 9")]
)
def test_other_discrete_sigmas_cause_a_warning(recorded, high, levels, message):
    sigmas = official(recorded("net_ncsnv2_small"))["sigmas"].float()

    def remark(process: NoiseProcess) -> str | None:
        return noise_differs(SimpleNamespace(denoiser=SimpleNamespace(process=process)), sigmas)

    assert (
        remark(DiscreteProcess(Geometric(0.01, 50), 232))
        is remark(VE(Geometric(0.01, 50)))
        is remark(VP(Linear()))
        is None
    )
    assert f"from 50 to 0.01 in 232 levels in the file, {message} levels in this configuration" in remark(
        DiscreteProcess(Geometric(0.01, high), levels)
    )


# --------------------------------------------------------------------------- the commands


def command(*arguments: str, cwd: Path) -> str:
    done = zygote.run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_command_imports_and_the_next_samples_and_evaluates(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record = recorded("net_ddpmpp_small")
    score_sde(tmp_path / "checkpoint_2.pth", record, official(record, seed=1), official(record))
    fast = ["data.train_size=200", "data.held_out_size=40", "metric.features.steps=2", "likelihood.flow.rtol=0.5"]
    fast += ["likelihood.flow.atol=0.5", "callback.evaluation.evaluator.likelihood_samples=2", "sampler_steps=2"]
    main(["checkpoint_2.pth", *MODELS["ddpmpp"][0], *SMALL, *fast])
    run = re.search(r"sample from it:  .*sample.py ckpt_path=(\S+)\n$", capsys.readouterr().out)[1]
    assert run == str(tmp_path / "logs/imported/checkpoint_2")
    size = ["num_samples=6", "trainer.accelerator=cpu", "evaluate=true", "out=out"]
    said = command(str(ROOT / "sample.py"), f"ckpt_path={run}", *size, cwd=tmp_path)
    assert f"sampling 6 from step 7 of {run}/checkpoints/step_00000007.ckpt (ema weights)" in said
    results = json.loads(Path("out/results.json").read_text())
    assert {"fd_digits_held_out_6", "coverage_digits_held_out_6", "flow_bits_per_dim"} <= results["metrics"].keys()
    assert results["sampler"].startswith("euler_maruyama (") and results["nfe"] in (2, 3)
    images = np.load("out/samples.npz")["arr_0"]
    again = diffusion_lab.load(run).sample(6).permute(0, 2, 3, 1)
    assert np.abs(again.numpy() * 255 - images).max() < 1.6


def test_help_says_what_to_type_and_needs_no_torch(tmp_path):
    said = command("-m", "diffusion_lab.interop", "a.pth", "--help", cwd=tmp_path)
    for words in (
        "python -m diffusion_lab.interop FILE",
        "experiment=",
        "out=DIRECTORY",
        "python sample.py ckpt_path=",
    ):
        assert words in said
    code = "import sys; from diffusion_lab.interop.__main__ import main; main([]); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout == said and done.returncode == 0, done.stderr
