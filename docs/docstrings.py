"""Our docstrings as reStructuredText: plain text with `code` and indented equations becomes valid markup."""

from __future__ import annotations

import re
from itertools import pairwise

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\s*$")
ITEM = re.compile(r"^(- |\d+\. )")
FIELD = re.compile(r"^([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)")
"""A line such as "groups: maximum number of groups", whose continuation is indented."""


def to_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Autodoc's hook: rewrite the lines of a docstring in place."""
    lines[:] = literal_blocks(listed([escaped(line) for line in lines]))
    if what in ("attribute", "data", "property") and lines:
        lines[0] = ": " + lines[0]  # napoleon takes what is before a colon for a type: there is none


def escaped(line: str) -> str:
    """A line in which `code` is literal, and the characters of markup stand for themselves."""
    parts = re.split(r"(`+[^`]+`+)", line)
    for i in range(1, len(parts), 2):
        parts[i] = f"``{parts[i].strip('`')}``" + ("\\ " if re.match(r"[\w=]", parts[i + 1]) else "")
    return "".join(part if i % 2 else plain(part) for i, part in enumerate(parts))


def plain(text: str) -> str:
    return re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", text)


def listed(lines: list[str]) -> list[str]:
    """Fields of the body as a list."""
    body, inside, made = True, False, []
    for line in lines:
        body = body and not SECTION.match(line)
        if body and (field := FIELD.match(line)):
            made += [*[""] * (not inside), f"- ``{field[1]}``: {field[2]}"]
            inside = True
        elif inside and line.startswith(" "):
            made.append("  " + line.strip())
        else:
            made += [*[""] * bool(inside and line), line]
            inside = False
    return made


def literal_blocks(lines: list[str]) -> list[str]:
    """Mark indented blocks of the body, which are equations, as literal blocks."""
    body, block, made = True, False, []
    for before, line in pairwise(["", *lines]):
        indented = line.startswith("    ")
        body = body and not SECTION.match(line)
        if body and indented and not before.strip() and not block and not ITEM.match(line.strip()):
            made += ["::", ""]
            block = True
        elif line.strip() and not indented:
            block = False
        made.append(unescaped(line) if block else line)
    return made


def unescaped(line: str) -> str:
    return re.sub(r"\\([\\*|_])", r"\1", line).replace("``", "`")
