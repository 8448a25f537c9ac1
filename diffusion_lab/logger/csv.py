"""The metric log of a run: one CSV file, resumed without missing or duplicate steps, also after the run was killed."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from diffusion_lab.output import say
from diffusion_lab.storage.atomic_file import describe_write_error, write_text

Rows = dict[int, dict[str, Any]]


class CSVLogger(Logger):
    """`<run_dir>/metrics.csv`: one row per step, in order, one column per metric, empty where it has none.

    Two values of a metric for one step share a row; the later one replaces the earlier.  Lightning's own CSVLogger
    deletes the file of a run that is resumed; this one continues it.  Only rank 0 writes.  Rows that cannot be written
    are kept in memory and written as soon as possible.

    Args:
        run_dir: the run's directory.
        flush_seconds: rows wait at most this long in memory; `save` and `finalize` write them at once.
    """

    name = version = ""

    def __init__(self, run_dir: str | Path, flush_seconds: float = 5.0) -> None:
        self.path, self.flush_seconds = Path(run_dir) / "metrics.csv", flush_seconds
        self._pending: Rows = {}
        self._saved, self._reported, self._lost = time.monotonic(), False, False
        self._forget()

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: Any) -> None:
        """Do nothing: the run's configuration is in the same directory."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float | None], step: int | None = None) -> None:
        """Log values for a step; without one, for the newest."""
        row = self._pending.setdefault(max(self._last, 0, *self._pending) if step is None else int(step), {})
        row |= {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items() if v is not None}
        if time.monotonic() - self._saved > self.flush_seconds:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows in memory: append them if they only continue the file, otherwise replace it."""
        if not self._pending:
            return
        fresh = any(k not in self._columns for row in self._pending.values() for k in row)
        try:
            if fresh or min(self._pending) <= self._last:
                columns, rows = self._read()
                for step, row in self._pending.items():
                    rows.setdefault(step, {}).update(row)
                    columns.extend(row)
                self._replace(columns, rows)
            else:
                self._append(self._pending)
        except OSError as error:
            self._forget()  # half a line may have been written
            self._saved = time.monotonic()
            if not self._reported:
                failure = describe_write_error(self.path, error)
                say(f"{failure}; its rows are kept in memory until it can, training continues")
            self._reported = True
            return
        self._pending, self._saved, self._reported = {}, time.monotonic(), False

    def finalize(self, status: str) -> None:
        """Write the rows in memory; report how many are lost if that is impossible."""
        self.save()
        if self._pending and not self._lost:
            say(f"{len(self._pending)} rows of {self.path} are lost")
            self._lost = True

    @rank_zero_only
    def truncate(self, step: int) -> set[tuple[int, str]]:
        """Drop rows after `step`, from which a run is resumed (-1 drops all); return the (step, metric) dropped."""
        self._pending = {s: row for s, row in self._pending.items() if s <= step}
        columns, rows = self._read()
        if any(s > step for s in rows):
            self._replace(columns, {s: row for s, row in rows.items() if s <= step})
        return {(s, key) for s, row in rows.items() if s > step for key in row}

    def row(self, step: int) -> dict[str, float]:
        """The values of a step; empty if nothing was logged."""
        self.save()
        return {key: float(value) for key, value in self._read()[1].get(step, {}).items()}

    def _forget(self) -> None:
        self._columns: list[str] = []  # unknown: the next `save` reads the file again
        self._last = -1

    def _read(self) -> tuple[list[str], Rows]:
        """Columns and rows of the file, without an incomplete last line."""
        text = self.path.read_text() if self.path.exists() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        columns, rows = list(reader.fieldnames or ["step"]), {}
        if "step" not in columns:
            raise ValueError(f"{self.path} is not a metric log: it has no column 'step'; move it away")
        for row in reader:
            rows.setdefault(int(row.pop("step")), {}).update({k: v for k, v in row.items() if v})
        return columns, rows

    def _replace(self, columns: list[str], rows: Rows) -> None:
        used = {k for row in rows.values() for k in row} - {"step"}
        self._columns = [k for k in dict.fromkeys(columns) if k in used]
        write_text(self.path, self._text(rows, header=True))
        self._last = max(rows, default=-1)

    def _append(self, rows: Rows) -> None:
        with self.path.open("a", newline="") as file:
            file.write(self._text(rows))
        self._last = max(rows)

    def _text(self, rows: Rows, header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *self._columns], lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({**rows[step], "step": step} for step in sorted(rows))
        return text.getvalue()
