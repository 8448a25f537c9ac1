"""Memory that runs out: one line with settings that need less of it and compute the same."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from test_conf import composed
from test_guard import model_of, trainer_of

from diffusion_lab.config.compose import check
from diffusion_lab.data import Toy2D
from diffusion_lab.run.failure import Failure, explain, explained, memory

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 2 MiB is free."
)


def advised(*words: str, **settings) -> list[str]:
    """The command-line words that are advised where a device has no memory left."""
    message = memory(torch.OutOfMemoryError(CUDA), {**composed(*words), **settings})
    assert message.startswith(f"the device is out of memory ({CUDA}); try ") and "\n" not in message
    return message.partition("; try ")[2].split(" or ")


def test_the_advice_keeps_what_a_step_computes():
    assert advised("data=cifar10") == [
        "data.batch_size=64 trainer.accumulate_grad_batches=2 (still 128 images a step)",
        "network.checkpoint=true",
        "trainer.precision=bf16-mixed",
    ]
    words = ["data=cifar10", "trainer.devices=8", "trainer.precision=bf16-mixed", "data.batch_size=72"]
    assert advised(*words) == [
        "data.batch_size=24 trainer.accumulate_grad_batches=3 (still 72 images a step)",  # 36 are no multiple of 8
        "network.checkpoint=true",
        "trainer=fsdp",
    ]
    assert advised("data=toy2d", "network=mlp", "data.batch_size=1", "trainer.precision=bf16-mixed") == [
        "a smaller network"
    ]


def test_what_is_advised_is_a_command():
    for word in advised("data=cifar10", "trainer.devices=2"):
        check("train", ["data=cifar10", "trainer.devices=2", *word.partition(" (")[0].split()])


def test_sampling_is_told_of_its_own_settings(tmp_path):
    settings = {"num_samples": 64, "batch_size": 500, "trainer": {"precision": "32-true"}}
    message = explain(torch.OutOfMemoryError(CUDA), tmp_path, settings)
    assert message.endswith("; try batch_size=250 or trainer.precision=bf16-mixed")


def test_the_errors_of_libraries_are_known_by_their_words():
    settings = composed()
    for error, where in (
        (MemoryError(), "this machine is out of memory (MemoryError)"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried"),
         "this machine is out of memory ([enforce fail"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the device is out of memory (CUDA error"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "the device is out of memory (MPS"),
    ):  # fmt: skip
        assert memory(error, settings).startswith(where)
    assert (
        memory(RuntimeError("shapes do not match"), settings) is None and memory(KeyError("memory"), settings) is None
    )


def test_a_device_without_memory_ends_the_training_after_the_last_checkpoint(tmp_path):
    class Large(torch.nn.Identity):
        def forward(self, x):
            if self.training and trainer.global_step == 2:
                raise torch.OutOfMemoryError(CUDA)
            return x

    model, trainer = model_of(), trainer_of(tmp_path)
    model.network.tail = Large()
    settings = composed("data=toy2d", "network=mlp", "data.batch_size=8")
    words = r"try data\.batch_size=4 trainer\.accumulate_grad_batches=2"
    with pytest.raises(Failure, match=words) as failure, explained(tmp_path, settings, "train"):
        trainer.fit(model, datamodule=Toy2D(train_size=64, held_out_size=20, batch_size=8))
    assert failure.value.status == 1 and failure.value.then.startswith("the last checkpoint is of step 2; resume:")


def test_a_training_that_this_machine_has_no_memory_for_says_so(tmp_path):
    """A process with a limit on its address space, and a batch that does not fit within."""
    settings = composed("data=toy2d", "network=mlp", "data.batch_size=1000000")
    child = os.fork()
    if child == 0:
        try:
            limit = 4096 * int(Path("/proc/self/statm").read_text().split()[0]) + (200 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with explained(tmp_path, settings, "train"):
                trainer_of(tmp_path).fit(
                    model_of(), datamodule=Toy2D(train_size=100_000, held_out_size=2, batch_size=1_000_000)
                )
        except Failure as failure:
            (tmp_path / "told").write_text(f"{failure.status} {failure}; {failure.then}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    message = (tmp_path / "told").read_text()
    assert message.startswith("1 this machine is out of memory (") and "allocate" in message and "\n" not in message
    assert "; try data.batch_size=500000 trainer.accumulate_grad_batches=2 (still 1000000 images a step)" in message
    assert message.endswith("; there is no checkpoint yet") and not (tmp_path / "checkpoints").exists()
