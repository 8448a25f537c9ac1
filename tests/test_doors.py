"""Data that moved, directories named in the same second, and commands that check what they use."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import zygote
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from printed import commands, paste

from diffusion_lab.config import directories
from diffusion_lab.config.compose import check
from diffusion_lab.config.instantiate import FURTHER
from diffusion_lab.data import HuggingFace, ImageFolder
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch import multirun
from diffusion_lab.run import data, measure
from diffusion_lab.run import import_command as interop
from diffusion_lab.run.changes import refuse_changes
from diffusion_lab.run.sample_spec import claim
from diffusion_lab.run.stats_command import USED, main
from diffusion_lab.storage.run_directory import make_new_directory
from diffusion_lab.storage.run_lock import locked

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("network=unet_small", "network.attention=[]", "network.channels=8", "network.groups=4", "logger=csv"),
    *(
        "debug=fast",
        "metric=digits",
        "metric.features.steps=2",
        "trainer.accelerator=cpu",
        "trainer.max_steps=1",
        "sampler_steps=2",
    ),
    *("data.batch_size=4", "data.shape=[3,8,8]", "trainer.val_check_interval=null", "likelihood=none"),
    *("callback.samples.every_n_steps=null", "callback.evaluation.at_end=false"),
)


def pictures(folder: Path, count: int = 12) -> Path:
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run on a folder of images, trained by a relative path, and where that folder lies now."""
    root = tmp_path_factory.mktemp("moved")
    pictures(root / "images")
    words = ("data=image_folder", "data.root=images", *TINY, "hydra.run.dir=run")
    done = zygote.run(ROOT / "train.py", *words, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    (command,) = commands(done.stdout)
    there = paste(command.replace("sampler=ddim", ""), *SCORED, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert there.returncode == 0, "relative paths begin where the run was started: " + there.stderr
    shutil.move(root / "images", root / "now")
    return root


SCORED = (
    "num_samples=4",
    "evaluate=true",
    "trainer.accelerator=cpu",
    "metric.measures=[frechet]",
    "metric.reference=train",
)


@pytest.mark.parametrize("key", ["data.root", "data_dir"])
def test_a_checkpoint_is_scored_where_its_data_lie_now(moved, key):
    words = (ROOT / "sample.py", "ckpt_path=run", *SCORED)
    lost = zygote.run(*words, cwd=moved)
    assert lost.returncode == 2 and "set data.root" in lost.stderr
    done = zygote.run(*words, f"{key}=now", cwd=moved)
    assert done.returncode == 0 and "fd_digits_train_4" in done.stdout, done.stdout + done.stderr


def test_training_goes_on_where_the_data_lie_now(moved):
    done = zygote.run(
        ROOT / "train.py", "ckpt_path=run", "data.root=now", "trainer.max_steps=2", "hydra.run.dir=on", cwd=moved
    )
    assert done.returncode == 0 and "data.root=now (was images)" in done.stdout, done.stdout + done.stderr


def test_other_keys_of_the_data_are_the_checkpoints(moved):
    done = zygote.run(ROOT / "sample.py", "ckpt_path=run", *SCORED, "data.flip=false", cwd=moved)
    assert done.returncode == 2 and "data.flip is set by the checkpoint" in done.stderr and "(data.root)" in done.stderr


class Own:
    """A user's data set, which declares where it lies by a name of its own."""

    places = ("folder",)

    def __init__(self, folder: str, size: int = 3) -> None: ...


def own(**settings):
    return {"_target_": f"{Own.__module__}.Own", **settings}


def test_a_class_of_the_users_own_declares_its_places(monkeypatch, tmp_path):
    monkeypatch.setenv(FURTHER, Own.__module__)
    trained = {"data": own(folder="a", size=3), "started": {"directory": str(tmp_path)}}
    assert data.located(trained, {"folder": "b"})["folder"] == "b"
    assert data.located(trained, {}, "c")["folder"] == "c"
    with pytest.raises(ConfigError, match=r"data.size is set by the checkpoint.*\(data.folder\)"):
        data.located(trained, {"size": 4})
    assert data.located(trained, {})["folder"] == "a"
    (tmp_path / "a").mkdir()
    assert data.located(trained, {})["folder"] == str(tmp_path / "a")
    bare = {"data": {"_target_": "diffusion_lab.data.Digits", "shape": [1, 8, 8]}}
    with pytest.raises(ConfigError, match="these data need no files"):
        data.located(bare, {}, "x")
    assert set(ImageFolder.places) == {"data_dir", "root"} and "name" in HuggingFace.places


SETTINGS = {
    "overrides": [], "allow_changes": False, "trainer": {"max_steps": 4, "accumulate_grad_batches": 1},
    "decay_steps": 4, "model": {"decay_steps": 4}, "data": {"batch_size": 8, "folder": "a"},
}  # fmt: skip


def longer(decay: int, *overrides: str, steps: int = 8) -> dict:
    trainer = {**SETTINGS["trainer"], "max_steps": steps}
    return {
        **SETTINGS,
        "trainer": trainer,
        "decay_steps": decay,
        "model": {"decay_steps": decay},
        "overrides": [*overrides],
    }


def test_training_for_longer_tells_what_becomes_of_the_learning_rate():
    message = "the learning rate reached 0 at step 4; decay_steps=8 extends the decay, decay_steps=4 keeps it at 0"
    with pytest.raises(ConfigError, match=f"^{message}: add one of them$"):
        refuse_changes(SETTINGS, longer(8), 1, 1)
    with pytest.raises(ConfigError, match=rf"^this changes what is trained: .*allow_changes=true; {message}$"):
        refuse_changes(SETTINGS, {**longer(8), "data": {"batch_size": 4, "folder": "a"}}, 1, 1)
    assert "decay_steps=8 (was 4)" in refuse_changes(SETTINGS, longer(8, "decay_steps=8"), 1, 1)
    assert "decay_steps" not in refuse_changes(SETTINGS, longer(4, "decay_steps=4"), 1, 1)
    with pytest.raises(ConfigError, match="changes what is trained"):
        refuse_changes(SETTINGS, longer(9, "decay_steps=9", steps=4), 1, 1)


def test_where_a_users_data_lie_is_no_change_of_the_training():
    now = {**SETTINGS, "data": {"batch_size": 8, "folder": "b"}}
    with pytest.raises(ConfigError, match="data.folder=b"):
        refuse_changes(SETTINGS, now, 1, 1)
    assert "data.folder=b (was a)" in refuse_changes(SETTINGS, now, 1, 1, ["data.folder"])


def test_directories_of_the_same_name_are_made_once_each_however_many_ask(tmp_path):
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(make_new_directory(tmp_path / "a" / "now"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in made) == ["now", *(f"now_{n}" for n in range(2, 9))]
    assert all(path.is_dir() for path in made)


@pytest.mark.parametrize(
    "place, named", [("logs/${now:%Y}", True), ("logs/mine", False), ("l/${oc.env:A,${now:%Y}}", True)]
)
def test_only_a_directory_that_nobody_named_gives_way(tmp_path, monkeypatch, place, named):
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create({"hydra": {"run": {"dir": place}, "output_subdir": ".hydra"}})
    OmegaConf.register_new_resolver("now", lambda _: "2026", replace=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    Path(OmegaConf.to_container(config, resolve=True)["hydra"]["run"]["dir"]).mkdir(parents=True)
    before = config.hydra.run.dir
    multirun.Sweep().on_run_start(config)
    assert config.hydra.run.dir == (f"{before}_2" if named else before)


@pytest.mark.parametrize("name", ["samples.npz", "samples.png", "results.json", "png", "samples"])
def test_files_that_sampling_has_not_made_are_not_written_over(tmp_path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds {name}, not written by sample.py, .*: choose another out="):
        claim(tmp_path, {"seed": 0})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / name).rename(tmp_path / "notes.txt")
    claim(tmp_path, {"seed": 0})
    (tmp_path / "samples.npz").write_text("drawn")
    claim(tmp_path, {"seed": 0})
    with (
        pytest.raises(ConfigError, match=r"cannot be made a directory \(File exists\)"),
        locked(tmp_path / "notes.txt"),
    ):
        pass


def test_statistics_are_not_measured_for_a_place_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="out=/proc/nowhere/x.npz cannot be written"):
        measure.measure(["data=digits"], "train", "/proc/nowhere/x.npz", None)


def test_statistics_check_the_data_and_the_extractor_and_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "images", 20)
    words = ["data=image_folder", "data.root=images", "data.shape=[3,48,48]"]
    check("train", words, used=USED)
    for wrong, message in (("data.num_workers=-1", "must be at least 0"), ("trainer.precision=x", "must be one of"),
                        ("metric=incepton", "did you mean inception")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            check("train", [*words, wrong], used=USED)
    with pytest.raises(ConfigError, match="data.root must be given"):
        check("train", ["data=image_folder"], used=USED)
    check("train", ["model=ddpm", "data=image_folder"], used=interop.USED)  # an import needs no images
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/mine.yaml").write_text("defaults:\n  - digits\n")
    main(["--config-dir", "conf", "data=mine", "split=train", "metric=digits", "metric.features.steps=2",
          "trainer.accelerator=cpu"])  # fmt: skip
    said = capsys.readouterr().out
    (command,) = commands(said)
    assert (
        f"metric.reference={tmp_path}/logs/statistics/mine_train.npz" in command
        and "sample.py ckpt_path=last" in command
    )
    with pytest.raises(SystemExit):
        main(["--config-dir", "nowhere", "data=digits"])
    assert "nowhere is not a directory: --config-dir needs" in capsys.readouterr().err
    assert measure.measure and directories.CONF == ROOT / "conf"
