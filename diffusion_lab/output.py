"""Printing that never fails: output that is not UTF-8, that is closed, or that is narrow."""

from __future__ import annotations

import codecs
import io
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

PLAIN = {
    "±": "+/-", "†": "*", "↓": "(lower)", "↑": "(higher)", "·": "-", "×": "x", "∫": "integral of", "µ": "u",
    "…": "...", "–": "-",
}  # fmt: skip
"""Replacements for characters that the output cannot encode; accents are removed, the rest becomes ?."""

NARROWEST = 80
"""Minimum width of a table, also where there is no terminal."""


def tolerant() -> None:
    """Make prints of this process never fail, whatever the encoding of its output and even if it is closed."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer in between
        if stream is getattr(sys, f"__{name}__") and isinstance(raw, io.FileIO):
            stream.flush()
            tolerating = _Tolerant(stream.fileno(), "w", closefd=False)
            setattr(sys, name, _reopened(stream, tolerating if buffer is raw else io.BufferedWriter(tolerating)))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def say(text: str) -> None:
    """Print a line on standard output and flush."""
    print(text, flush=True)


def shown(text: str) -> str:
    """A text with the characters replaced that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    codecs.register_error("plain", _plain)
    return text.encode(encoding, "plain").decode(encoding)


def width() -> int:
    """Number of columns available for a table."""
    return max(shutil.get_terminal_size((NARROWEST, 24)).columns, NARROWEST)


def print_table(table: Table) -> None:
    """Print a Rich table, with ASCII lines where the output supports no others."""
    from rich.console import Console

    Console(file=sys.stdout, width=width(), highlight=False, markup=False).print(table)


class _Tolerant(io.FileIO):
    """A file that discards what is written to it if the reader is gone or the disk is full."""

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
    return "".join(_word(character, error.encoding) for character in piece), error.end


def _word(character: str, encoding: str) -> str:
    bare = PLAIN.get(character) or unicodedata.normalize("NFKD", character)
    bare = bare.encode("ascii", "ignore").decode() or "?"
    try:  # not even ASCII in this encoding
        bare.encode(encoding)
    except UnicodeEncodeError:
        return "?"
    return bare
