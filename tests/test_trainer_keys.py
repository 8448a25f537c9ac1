"""Keys of the Trainer that cannot mean here what they say: epochs, devices that are not there, strategies that spawn."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from zygote import ROOT, run

from diffusion_lab.config.compose import check
from diffusion_lab.config.trainer_keys import compare_devices, count_in_steps
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch.agent import ranks_to_start


@pytest.mark.parametrize(
    "task, word, message",
    [
        ("train", "trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn does not work"),
        ("sample", "trainer.strategy=ddp_spawn", "choose auto, ddp"),
        ("train", "trainer.strategy=ddp_notebook", "does not work"),
        ("train", "trainer.strategy=dp", "does not work"),
        ("train", "trainer.strategy=fsdp", "use trainer=fsdp"),
        ("train", "trainer.devices=0", "use a number from 1, -1 (all GPUs)"),
        ("sample", "trainer.devices=-2", "use a number from 1"),
        ("train", "trainer.devices=[]", "not a list of different GPUs"),
        ("train", "trainer.devices=[0,0]", "not a list of different GPUs"),
        ("train", "trainer.devices=all", "trainer.devices=all is not valid"),
        ("train", "trainer.devices=1.5", "trainer.devices=1.5 must be"),
        ("train", "trainer.accelerator=cpu trainer.devices=-1", "use a number of ranks"),
        ("train", "trainer.accelerator=cpu trainer.devices=[0,1]", "use a number of ranks"),
        ("train", "+trainer.limit_train_batches=10", "set trainer.max_steps"),
        ("train", "+trainer.logger=true", "choose logger=csv"),
        ("train", "+trainer.fast_dev_run=true", "choose debug=fast"),
        ("train", "+trainer.reload_dataloaders_every_n_epochs=1", "training has no epochs"),
        ("train", "seed=18446744073709551616", "seed=18446744073709551616 must be in [0, "),
        ("train", "callback.samples.seed=1e20", "callback.samples.seed="),
        ("sample", "seed=1e30", "seed="),
        ("train", "data.seed=-1", "data.seed=-1 must be in [0, "),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_imported(task, word, message):
    with pytest.raises(ConfigError) as error:
        check(task, [*word.split(), *(["ckpt_path=x"] if task == "sample" else [])])
    assert message in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("seed", [4294967296, 2**63 - 1])
@pytest.mark.parametrize("key", ["seed", "data.seed", "callback.samples.seed", "callback.evaluation.evaluator.seed"])
def test_seeds_may_come_from_a_clock(key, seed):
    check("train", [f"{key}={seed}"])


@pytest.mark.parametrize(
    "trainer, gpus, message",
    [
        ({"devices": 8, "accelerator": "auto"}, 0, "add trainer.accelerator=cpu if you mean 8 CPU ranks"),
        ({"devices": "2", "accelerator": "auto"}, 0, "no GPU was found"),
        ({"devices": -1, "accelerator": "auto"}, 0, "set trainer.devices=1"),
        ({"devices": [0, 1], "accelerator": "auto"}, 0, "set trainer.devices=1"),
        ({"devices": 1, "accelerator": "gpu"}, 0, "use trainer.accelerator=cpu"),
        ({"devices": 8, "accelerator": "auto"}, 8, ""),
        ({"devices": -1, "accelerator": "gpu"}, 1, ""),
        ({"devices": "auto", "accelerator": "auto"}, 0, ""),
        ({"devices": 1, "accelerator": "auto"}, 0, ""),
        ({"devices": 2, "accelerator": "cpu"}, 0, ""),
    ],
)
def test_gpus_that_are_not_there_are_refused(trainer, gpus, message):
    if not message:
        assert compare_devices(trainer, gpus, cores=2) is None
        return
    with pytest.raises(ConfigError) as error:
        compare_devices(trainer, gpus, cores=2)
    assert message in str(error.value)


def test_a_list_of_gpus_is_a_rank_for_each_also_as_hydra_composes_it():
    for devices, count in (([0, 2], 2), (2, 2), ("3", 3), (1, 0), ([4], 0)):
        assert ranks_to_start(OmegaConf.create({"devices": devices, "accelerator": "gpu"})) == count


def test_more_ranks_than_cores_are_remarked_upon():
    assert "3 CPU ranks share 2 cores" in compare_devices({"devices": 3, "accelerator": "cpu"}, 0, cores=2)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"max_epochs": 1}, "trainer.max_epochs=1: give steps; 1 epoch = 6 steps"),
        ({"max_epochs": 3}, "set trainer.max_steps=17"),
        ({"min_epochs": 1}, "set +trainer.min_steps=6"),
        ({"check_val_every_n_epoch": 2}, "set trainer.val_check_interval=11"),
        ({"val_check_interval": 0.5}, "set trainer.val_check_interval=3"),
    ],
)
def test_epochs_are_refused_with_the_steps_they_mean(keys, message):
    with pytest.raises(ConfigError) as error:
        count_in_steps(keys, items=1400, batch=256)
    assert message in str(error.value)
    count_in_steps({"max_epochs": -1, "min_epochs": None, "val_check_interval": 100.0}, 1400, 256)


def test_the_command_refuses_epochs_and_absent_devices_and_takes_any_seed(tmp_path):
    words = ("data=digits", "data.batch_size=256", "debug=fast", "logger=csv", "callback.evaluation.at_end=false")
    done = run(ROOT / "train.py", *words, "trainer.max_epochs=1", "trainer.accelerator=cpu", cwd=tmp_path)
    assert done.returncode == 2 and "1 epoch = 6 steps" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = run(ROOT / "train.py", *words, "trainer.devices=8", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stderr.startswith("error: trainer.devices=8, but no GPU was found: add"), (
        done.stderr  # by no rank
    )
    assert "if you mean 8 CPU ranks" in done.stderr and done.stderr.count("\n") == 1
    run_dir = tmp_path / "run"
    seeds = (f"seed={2**63 - 1}", "trainer.val_check_interval=2.0", "trainer.max_steps=2e0", "trainer.accelerator=cpu")
    done = run(ROOT / "train.py", *words, *seeds, f"hydra.run.dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    more = ("num_samples=2.0", "seed=4294967296", "sampler/corrector=null", "trainer.accelerator=cpu", "out=5")
    done = run(ROOT / "sample.py", f"ckpt_path={run_dir}", *more, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "5/samples.npz").exists(), done.stderr
