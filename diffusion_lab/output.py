"""Printing that never fails, also if the output is not UTF-8, closed, or narrow."""

from __future__ import annotations

import codecs
import io
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

PLAIN = {
    "±": "+/-", "†": "*", "↓": "(lower)", "↑": "(higher)", "·": "-", "×": "x", "∫": "integral of", "µ": "u",
    "…": "...", "–": "-",
}  # fmt: skip
"""Replacements for characters that the output cannot encode; accents are removed, the rest becomes ?."""

NARROWEST = 80
"""Minimum width of a table, also without a terminal."""


def tolerant() -> None:
    """Make printing in this process never fail, for any encoding of the output and even if it is closed."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with python -u there is no buffer
        if stream is getattr(sys, f"__{name}__") and isinstance(raw, io.FileIO):
            stream.flush()
            file = _Tolerant(stream.fileno(), "w", closefd=False)
            setattr(sys, name, _reopened(stream, file if buffer is raw else io.BufferedWriter(file)))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def say(text: str) -> None:
    """Print a line on standard output and flush."""
    print(text, flush=True)


def shown(text: str) -> str:
    """Return a text with replacements for the characters that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    codecs.register_error("plain", _plain)
    return text.encode(encoding, "plain").decode(encoding)


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names, separated by commas, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def width() -> int:
    """Return the number of columns available for a table."""
    return max(shutil.get_terminal_size((NARROWEST, 24)).columns, NARROWEST)


def print_table(table: Table) -> None:
    """Print a Rich table, with ASCII lines where the output supports no others."""
    from rich.console import Console

    Console(file=sys.stdout, width=width(), highlight=False, markup=False).print(table)


class _Tolerant(io.FileIO):
    """A file that discards writes if the reader is gone or the disk is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:  # a closed pipe or terminal: the run matters more than its output
            return len(memoryview(data).cast("B"))


def _reopened(stream: Any, buffer: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors="plain",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end]
    return "".join(_replacement(character, error.encoding) for character in piece), error.end


def _replacement(character: str, encoding: str) -> str:
    text = PLAIN.get(character) or unicodedata.normalize("NFKD", character)
    text = text.encode("ascii", "ignore").decode() or "?"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # an encoding without all of ASCII
        return "?"
    return text
