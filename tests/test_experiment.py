"""conf/experiment: what each header claims, and its numbers against the official ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from experiment import NAMES, arguments, composed, header, settings
from official import MEANING, at, flat, without_meaning

from diffusion_lab.config.validation import validate


@pytest.fixture(autouse=True)
def placeholder(tmp_path, monkeypatch):
    """A folder of pairs under the name that headers give one."""
    monkeypatch.chdir(tmp_path)
    Path("DIRECTORY").mkdir()
    Path("DIRECTORY", "noise.npy").touch()


OFFICIAL = json.loads((Path(__file__).parent / "reference" / "constants.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_header_states_the_source_and_a_command_that_is_valid(name):
    said = header(name)
    assert list(said) in (["Paper", "Published", "Command"], ["Paper", "Published", "Command", "Sample"])
    assert re.search(r"\b(19|20)\d\d \(arXiv:\d{4}\.\d{5}\)", said["Paper"])
    first, *rest = arguments(said["Command"], "train.py")
    assert first == f"experiment={name}"
    c = settings(name)
    validate(c)
    assert all(str(at(c, key)) == value for key, _, value in (word.partition("=") for word in rest))


@pytest.mark.parametrize("name", [name for name in NAMES if "Sample" in header(name)])
def test_the_sampling_command_is_that_of_the_experiment(name):
    words = arguments(header(name)["Sample"], "sample.py")
    got, wanted = composed(*words, task="sample"), settings(name)
    validate(got)
    assert (got["num_samples"], got["evaluate"], got["ckpt_path"]) == (50000, True, "last")
    if "FID(ODE)" in header(name)["Published"]:
        assert words[1] == "sampler=ode" and got["sampler"]["_target_"].endswith(".ProbabilityFlow")
    else:
        assert got["sampler"] == wanted["sampler"]


@pytest.mark.parametrize("words, name", [
    ("model=score_sde sde=ve", "score_sde/ncsnpp_continuous"),
    ("model=score_sde sde=vp", "score_sde/ddpmpp_continuous"),
    ("model=score_sde sde=subvp", "score_sde/subvp_ddpmpp_continuous"),
    ("model=ncsn", "ncsn/cifar10"),
    ("model=ncsnv2", "ncsnv2/cifar10"),
    ("model=edm", "edm/vp_f"),
    ("model=edm network=edm_ncsnpp", "edm/ve_f"),
    ("model=ddpm callback.evaluation.evaluator.likelihood_samples=null", "ddpm/l_simple"),
])  # fmt: skip
def test_a_model_alone_gets_the_published_hyperparameters(words, name):
    assert composed(*words.split(), "data=cifar10") == settings(name)


@pytest.mark.parametrize("name, words, expected", [
    ("score_sde/subvp_ncsnpp_deep_continuous",
     "network.blocks=2 trainer.max_steps=5 callback.ema.decay=0.5 sampler=pc sampler.corrector.snr=0.3 data.batch_size=64",
     {"model.network.blocks": 2, "model.network.fir": True, "trainer.max_steps": 5, "callback.ema.decay": 0.5,
      "model.sampler.corrector.snr": 0.3, "data.batch_size": 64}),
    ("score_sde/ddpm", "sde=ve network=ncsnpp warmup_steps=7",
     {"callback.ema.decay": 0.999, "model.loss.reduction": "half_sum", "model.network.fir": True, "model.low": 0.0,
      "model.warmup_steps": 7}),
    ("score_sde/table1/ve_ancestral_pc1000", "sampler/predictor=reverse_diffusion sampler.steps=9 data=patches",
     {"model.sampler.predictor.probability_flow": False, "model.sampler.corrector.snr": 0.17, "model.sampler.steps": 9,
      "trainer.max_steps": 100000, "data._target_": "diffusion_lab.data.Patches"}),
])  # fmt: skip
def test_the_command_line_wins(name, words, expected):
    c = composed(f"experiment={name}", *words.split())
    assert {path: at(c, path) for path in expected} == expected


# --------------------------------------------------------------------------- numbers

SCORE_SDE = {  # experiment -> (official configuration, row of the results)
    "ncsnpp": ("ve.cifar10_ncsnpp", "NCSN++ (VE, discrete)"),
    "ncsnpp_continuous": ("ve.cifar10_ncsnpp_continuous", "NCSN++ cont. (VE)"),
    "ncsnpp_deep_continuous": ("ve.cifar10_ncsnpp_deep_continuous", "NCSN++ cont. deep (VE)"),
    "ve_ddpm": ("ve.cifar10_ddpm", None),
    "ddpm": ("vp.ddpm.cifar10", "DDPM (VP, score_sde)"),
    "ddpm_continuous": ("vp.ddpm.cifar10_continuous", "DDPM cont. (VP)"),
    "ddpmpp": ("vp.cifar10_ddpmpp", "DDPM++ (VP)"),
    "ddpmpp_continuous": ("vp.cifar10_ddpmpp_continuous", "DDPM++ cont. (VP)"),
    "ddpmpp_deep_continuous": ("vp.cifar10_ddpmpp_deep_continuous", "DDPM++ cont. deep (VP)"),
    "vp_ncsnpp": ("vp.cifar10_ncsnpp", None),
    "vp_ncsnpp_continuous": ("vp.cifar10_ncsnpp_continuous", None),
    "vp_ncsnpp_deep_continuous": ("vp.cifar10_ncsnpp_deep_continuous", None),
    "subvp_ddpm_continuous": ("subvp.cifar10_ddpm_continuous", "DDPM cont. (sub-VP)"),
    "subvp_ddpmpp_continuous": ("subvp.cifar10_ddpmpp_continuous", "DDPM++ cont. (sub-VP)"),
    "subvp_ddpmpp_deep_continuous": ("subvp.cifar10_ddpmpp_deep_continuous", "DDPM++ cont. deep (sub-VP)"),
    "subvp_ncsnpp_continuous": ("subvp.cifar10_ncsnpp_continuous", None),
    "subvp_ncsnpp_deep_continuous": ("subvp.cifar10_ncsnpp_deep_continuous", None),
}
ROWS = [
    *((f"score_sde/{name}", f"score_sde:{config}") for name, (config, _) in SCORE_SDE.items()),
    ("ncsn/cifar10", "ncsn:anneal"),
    ("ncsn/cifar10", "score_sde:ve.ncsn.cifar10"),
    ("ncsnv2/cifar10", "ncsnv2:cifar10"),
    ("ncsnv2/cifar10", "score_sde:ve.ncsnv2.cifar10"),
    ("ncsnv2/techniques_124", "score_sde:ve.ncsn.cifar10_124"),
    ("ncsnv2/techniques_1245", "score_sde:ve.ncsn.cifar10_1245"),
    ("ncsnv2/techniques_5", "score_sde:ve.ncsn.cifar10_5"),
    ("ddpm/l_simple", "ddim:cifar10"),
    ("ddim/eta0", "ddim:cifar10"),
]
LACKING = {
    "edm:cifar10 (train.py defaults)": "see test_edm",
    "iddpm:cifar10_hybrid (README flags)": "see test_iddpm",
    "score_sde:vp.ddpm.cifar10_unconditional": "crashes in the official program; no number was published",
    **dict.fromkeys(("ncsnv2:celeba", "ncsnv2:church", "ncsnv2:ffhq"), "not CIFAR-10"),
}


def test_every_official_configuration_of_cifar10_has_an_experiment():
    assert {theirs for _, theirs in ROWS} | set(LACKING) == set(OFFICIAL["configs"])


@pytest.mark.parametrize("name, theirs", ROWS, ids=[f"{name}-{theirs}" for name, theirs in ROWS])
def test_every_official_number_is_ours(name, theirs):
    c, official = settings(name), flat(OFFICIAL["configs"][theirs])
    keys = set(official) - without_meaning(theirs, c)
    assert keys <= set(MEANING), "an official key is neither translated nor excused"
    ours = {key: MEANING[key](c) if callable(MEANING[key]) else at(c, MEANING[key]) for key in keys}
    assert ours == {key: official[key] for key in keys}
    assert c["callback"]["ema"]["warmup"] is name.startswith("score_sde/")


def published(name: str) -> dict[str, Any]:
    """The numbers of a header under the names of the recorded results."""
    found, text = {}, header(name)["Published"]
    patterns = {"FID": r"FID ([\d./ ]*\d)", "FID_ODE": r"FID\(ODE\) ([\d.]*\d)", "IS": r"IS ([\d.]*\d)",
                "NLL": r"([\d.]+) bits/dim(?! at most)", "NLL_bound": r"([\d.]+) bits/dim at most"}  # fmt: skip
    for key, pattern in patterns.items():
        numbers = [float(n) for group in re.findall(pattern, text) for n in group.split(" / ")]
        found |= {key: numbers if len(numbers) > 1 else numbers[0]} if numbers else {}
    return found


# Song et al. 2021, Tables 1 and 5: P1000, P2000, PC1000 and the corrector's r for SMLD (ve) and DDPM (vp).
TABLE1 = {
    "ve_ancestral": (4.98, 4.88, 3.62, 0.17), "vp_ancestral": (3.24, 3.24, 3.21, 0.01),
    "ve_reverse_diffusion": (4.79, 4.74, 3.60, 0.16), "vp_reverse_diffusion": (3.21, 3.19, 3.18, 0.01),
    "ve_probability_flow": (15.41, 10.54, 3.51, 0.17), "vp_probability_flow": (3.59, 3.23, 3.06, 0.04),
}  # fmt: skip
C2000 = {"ve_c2000": (20.43, 0.22), "vp_c2000": (19.06, 0.27)}
TABLE1_FID = {f"{row}_{column}": fid for row, fids in TABLE1.items()
              for column, fid in zip(("p1000", "p2000", "pc1000"), fids[:3], strict=True)}  # fmt: skip
TABLE1_FID |= {row: fid for row, (fid, _) in C2000.items()}
EDM_FID = {  # Karras et al. 2022, Table 2, unconditional CIFAR-10
    f"{sde}_{config}": fid
    for sde, fids in {"vp": (3.01, 2.51, 2.31, 2.29, 2.05, 1.97), "ve": (3.77, 2.94, 2.83, 3.10, 1.99, 1.98)}.items()
    for config, fid in zip("abcdef", fids, strict=True)
}
RESULTS = {row: f"score_sde/{name}" for name, (_, row) in SCORE_SDE.items() if row} | {
    "NCSN": "ncsn/cifar10",
    "NCSNv2": "ncsnv2/cifar10",
    "DDPM L_simple": "ddpm/l_simple",
    "DDIM eta=0, S=10/20/50/100/1000": "ddim/eta0",
    "DDPM fixed large via DDIM code, S=10/20/50/100/1000": "ddim/sigma_hat",
}
OTHERS = {  # published, but not among the recorded results
    "score_sde/ve_ddpm": {"FID": 3.60},
    "ncsn/cifar10_denoise": {"FID": 29.8, "IS": 7.32},
    "ncsnv2/cifar10_no_denoise": {"FID": 31.75, "IS": 8.73},
    "iddpm/l_hybrid": {"FID": 3.19, "NLL_bound": 3.17},
    "iddpm/l_vlb": {"FID": 11.47, "NLL_bound": 2.94},
    "adm/cifar10": {"FID": 2.99},
    "consistency/ict": {"FID": [2.83, 2.46]},
    "consistency/ect": {"FID": [3.60, 2.11]},
    "adm/imagenet64": {"FID": 2.07},
    "edm/imagenet64": {"FID": 1.36},
    **{f"flow/{name}": {"FID_ODE": fid} for name, fid in {"icfm": 3.659, "otcfm": 3.577, "fm": 3.655}.items()},
    "flow/lipman": {"FID_ODE": [6.35, 11.53], "NLL": 2.99},
    "flow/rectified_1": {"FID_ODE": 2.58},
    "flow/rectified_2": {"FID_ODE": 3.36},
    "flow/rectified_2_distilled": {"FID": 4.85},
    "ddpm/l_fixed": {"FID": 13.51, "IS": 7.67, "NLL_bound": 3.70},
    "ddim/eta02": {"FID": [14.04, 7.11, 4.77, 4.25, 4.09]},
    "ddim/eta05": {"FID": [16.66, 8.35, 5.25, 4.46, 4.29]},
    "ddim/eta1": {"FID": [41.07, 18.36, 8.01, 5.78, 4.73]},
    **{f"score_sde/table1/{name}": {"FID": fid} for name, fid in TABLE1_FID.items()},
    **{f"edm/{name}": {"FID": fid} for name, fid in EDM_FID.items()},
}


def test_headers_state_the_published_results():
    recorded = {row["model"]: row["values"] for row in OFFICIAL["results"]}
    elsewhere = {row for row in recorded if re.match("EDM|IDDPM|Consistency|Progressive", row)}
    assert set(RESULTS) | elsewhere == set(recorded)
    expected = OTHERS | {name: recorded[row] for row, name in RESULTS.items()}
    assert {name: published(name) for name in NAMES} == {name: expected.get(name, {}) for name in NAMES}
    assert set(expected) <= set(NAMES)
