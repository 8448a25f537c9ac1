"""W&B without a network: an environment with nothing in it, and a reader of the files that offline runs write."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef" * 2 + "01234567"
REFUSED = "http://127.0.0.1:9"


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """No key, no settings, and a W&B server that refuses connections; nothing but loopback is ever contacted."""
    for name in [n for n in os.environ if n.startswith("WANDB")] + ["NETRC", "http_proxy", "HTTP_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", REFUSED)
    for name in ("WANDB__DISABLE_STATS", "WANDB__DISABLE_MACHINE_INFO", "WANDB_DISABLE_GIT"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(home)
    yield monkeypatch
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()


@pytest.fixture
def keyed(clean):
    clean.setenv("WANDB_API_KEY", KEY)
    return clean


def offline_runs(run_dir: Path) -> list[Path]:
    """Folders of a run directory's offline runs, oldest first."""
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def records(folder: Path) -> list[Any]:
    """What a run told W&B, out of the file that `wandb sync` uploads."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(data) for data in _log(next(folder.glob("*.wandb")).read_bytes())]


def _log(data: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format: after a header of 7 bytes, pieces (checksum, length, kind) in blocks of 32 KiB."""
    assert data[:4] == b":W&B"
    place, parts = 7, []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + 7 : place + 7 + length]
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        parts.append(piece)
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield b"".join(parts)
            parts = []


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows that a run logged, without W&B's own keys but `_step`."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            rows.append({k: v for k, v in items.items() if k == "_step" or k[0] != "_"})
    return rows


def config(folder: Path) -> dict[str, Any]:
    """The configuration that a run shows."""
    found: dict[str, Any] = {}
    for record in records(folder):
        for part in (record.run.config, record.config):
            found |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in part.update}
    return found
