"""Files are written and features extracted while the next chunk is drawn: order, bound, errors, what is on the disk."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from evaluation_job import tiny_model
from PIL import Image

from diffusion_lab.evaluation import SampleStore, sample_store
from diffusion_lab.evaluation.background import WAITING, Background
from diffusion_lab.evaluation.chunked_array import Rows
from diffusion_lab.evaluation.seconds import DeviceClock
from diffusion_lab.finite import NonFinite
from diffusion_lab.metric import to_uint8
from diffusion_lab.run.sample_files import write_pngs
from diffusion_lab.storage.atomic_file import NotWritten


@pytest.fixture
def beside_an_accelerator(monkeypatch):
    """Files are written in the background, as beside a network on an accelerator."""
    monkeypatch.setattr(sample_store, "Background", lambda device: Background("cuda"))


def test_beside_a_network_on_the_cpu_a_piece_is_done_at_once():
    threads = []
    with pytest.raises(OSError, match="disk full"), Background(torch.device("cpu")) as background:
        background(lambda: threads.append(threading.get_ident()))
        assert threads == [threading.get_ident()]
        background(failing)
        threads.append("not reached")
    assert len(threads) == 1


def test_pieces_are_done_in_order_in_one_other_thread():
    done = []
    with Background("cuda") as background:
        for k in range(5):
            background(lambda k=k: done.append((k, threading.get_ident())))
    assert [k for k, _ in done] == list(range(5))
    assert len({thread for _, thread in done} | {threading.get_ident()}) == 2


def test_at_most_two_pieces_wait():
    gate, begun, handed = threading.Event(), threading.Event(), []

    def hand_over():
        with Background("cuda") as background:
            for k in range(4):
                background(lambda: begun.set() or gate.wait(10))
                handed.append(k)

    caller = threading.Thread(target=hand_over)
    caller.start()
    assert begun.wait(10)
    time.sleep(0.2)
    assert len(handed) == WAITING == 2, "the third waits"
    gate.set()
    caller.join(10)
    assert len(handed) == 4


def failing():
    time.sleep(0.05)  # the caller is further by then
    raise OSError("disk full")


def test_an_error_reaches_the_caller_and_ends_the_work():
    done = []
    with pytest.raises(OSError, match="disk full") as raised, Background("cuda") as background:
        background(failing)
        for k in range(9):
            background(lambda k=k: done.append(k))
        done.append("not reached")
    assert not done and raised.value.__context__ is None
    with pytest.raises(OSError, match="disk full"), Background("cuda") as background:
        background(failing)  # the last piece: known only at the end
    with pytest.raises(OSError, match="disk full"), Background("cuda") as background:
        background(failing)
        raise ValueError("later")  # as if the piece had been done at once
    with pytest.raises(KeyboardInterrupt), Background("cuda") as background:
        background(failing)
        raise KeyboardInterrupt


@pytest.mark.usefixtures("beside_an_accelerator")
def test_what_was_drawn_before_a_failure_is_stored(tmp_path, monkeypatch):
    for number, failure in enumerate((NonFinite("sample 9 is not finite"), KeyboardInterrupt())):
        store = SampleStore(tmp_path / str(number), tiny_model(), batch_size=3)
        draw, write = store.model.sample, store.samples.write

        def sample(count, failure=failure, draw=draw, **options):
            if options["first"] == 9:
                raise failure
            return draw(count, **options)

        monkeypatch.setattr(store.model, "sample", sample)
        monkeypatch.setattr(store.samples, "write", lambda *rows, write=write: time.sleep(0.05) or write(*rows))
        with pytest.raises(type(failure)):
            store.complete(12)
        assert store.samples.missing(12) == [range(9, 12)]


@pytest.mark.usefixtures("beside_an_accelerator")
def test_drawing_goes_on_while_files_are_written(tmp_path, monkeypatch):
    store, log = SampleStore(tmp_path, tiny_model(), batch_size=3), []
    draw, drawn = store.model.sample, threading.Event()

    def sample(count, **options):
        rows = draw(count, **options)
        if options["first"]:
            drawn.set()
        return rows

    def then(chunk):
        if chunk.start == 0:
            assert drawn.wait(20), "the next chunk is drawn meanwhile"
        log.append((chunk, store.samples.has(chunk)))

    monkeypatch.setattr(store.model, "sample", sample)
    store.complete(6, then=then)
    assert log == [(range(3), True), (range(3, 6), True)]
    store.complete(6, then=then)
    assert len(log) == 2, "nothing is drawn again"


class Brightness:
    """An extractor: (mean, mean of squares) of an image; logs its calls."""

    digest = "0123456789"

    def __init__(self, log):
        self.log = log

    def __call__(self, images):
        self.log.append(f"features of {len(images)}")
        return torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3))], 1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_are_extracted_before_the_next_chunk_is_drawn(tmp_path, monkeypatch, device):
    monkeypatch.setattr(sample_store, "Background", lambda _: Background(device))
    store, log = SampleStore(tmp_path, tiny_model(), batch_size=3), []
    draw = store.model.sample
    monkeypatch.setattr(store.model, "sample", lambda *size, **options: log.append("drawn") or draw(*size, **options))
    assert store.complete(8, Brightness(log), 5) > 0, "seconds of the features"
    assert log == ["drawn", "features of 3", "drawn", "features of 3", "drawn"], "5 samples are scored"
    features = store.complete_features(Brightness(log), 5)
    assert len(log) == 5 and store.complete(8, Brightness(log), 8) == 0, "nothing is extracted again"
    later = SampleStore(tmp_path / "later", store.model, batch_size=3)
    for chunk in store.samples.ranges(8):
        later.samples.write(chunk, store.samples.read(chunk))
    assert torch.equal(Rows(features, range(6))[:], Rows(later.complete_features(Brightness(log), 8), range(6))[:])


def test_the_seconds_of_a_device_are_those_of_its_queue(monkeypatch):
    """CUDA's events as stand-ins on a queue that lags behind the host."""
    queue = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            queue.append(self)

        def synchronize(self):
            for place, event in enumerate(queue):
                event.time = 500.0 * place**2  # ms

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr("torch.cuda.Event", Event)
    clocks = [DeviceClock("cuda") for _ in range(2)]
    for clock in clocks:
        with clock:
            pass
    assert [clock.seconds() for clock in clocks] == [0.5, 2.5]
    with DeviceClock("cpu") as clock:
        time.sleep(0.05)
    assert 0.05 <= clock.seconds() < 5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_files_and_pictures_are_those_of_the_model(tmp_path, monkeypatch, device):
    monkeypatch.setattr(sample_store, "Background", lambda _: Background(device))
    store, expected = SampleStore(tmp_path, tiny_model(), seed=3, batch_size=3), tiny_model()
    store.complete(11, then=partial(write_pngs, store, out=tmp_path / "png"))
    rows = to_uint8(expected.sample(11, seed=3, batch_size=3)).permute(0, 2, 3, 1)
    assert torch.equal(store.rows(range(11))[:], rows)
    names = [f"{index:06d}.png" for index in range(11)]
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == names
    for name, row in zip(names, rows, strict=True):
        assert torch.equal(torch.from_numpy(np.array(Image.open(tmp_path / "png" / name))), row[..., 0])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, device):
    monkeypatch.setattr(sample_store, "Background", lambda _: Background(device))
    store = SampleStore(tmp_path, tiny_model(), batch_size=3)
    monkeypatch.setattr("numpy.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NotWritten, match="cannot be written: No space left on device, .* are free$"):
        store.complete(6)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
