"""Printing that never ends a run: output that is no UTF-8, that nobody reads any more, or that is narrow."""

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
"""What is written for a character that the output cannot show; an accent is left out, and the rest is ?."""

NARROWEST = 80
"""Columns of a table where the terminal has fewer, or where there is none."""


def tolerant() -> None:
    """Let no print of this process fail, whatever the encoding of its output is and whoever has closed it."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between
        if stream is getattr(sys, f"__{name}__") and isinstance(raw, io.FileIO):
            stream.flush()
            tolerating = _Tolerant(stream.fileno(), "w", closefd=False)
            setattr(sys, name, _reopened(stream, tolerating if buffer is raw else io.BufferedWriter(tolerating)))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def say(text: str) -> None:
    """One line on standard output, at once."""
    print(text, flush=True)


def shown(text: str) -> str:
    """A text as standard output can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    codecs.register_error("plain", _plain)
    return text.encode(encoding, "plain").decode(encoding)


def width() -> int:
    """Columns that a table may have."""
    return max(shutil.get_terminal_size((NARROWEST, 24)).columns, NARROWEST)


def print_table(table: Table) -> None:
    """Print a table of Rich, with rules of ASCII where the output has no others."""
    from rich.console import Console

    Console(file=sys.stdout, width=width(), highlight=False, markup=False).print(table)


class _Tolerant(io.FileIO):
    """A file that takes what is written to it, and loses it where the reader is gone or the disk is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:  # a closed pipe, a terminal that is gone: a run is worth more than its last lines
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
    try:  # an encoding that has not even ASCII's characters is not met
        bare.encode(encoding)
    except UnicodeEncodeError:
        return "?"
    return bare
