"""CoNLL files: a word a line with its tags in columns, a blank line between sentences."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.text import open_text
from ftkit.errors import InputError

log = logging.getLogger("ftkit")

_DOCUMENT = "-DOCSTART-"
_LINES_LOOKED_AT = 200
_MOST_LINES_NAMED = 10
_GIANT = 2000


class Conll(Format):
    """A word a line with columns (token, ..., tag), separated by tabs or spaces."""

    type: Literal["conll"] = "conll"
    suffixes: ClassVar[tuple[str, ...]] = (".conll", ".bio", ".iob", ".iob2", ".conll2003")
    numbered: ClassVar[bool] = True

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        """A row a sentence: the values of each column by its number, and as `token` and `tag`.

        Raises:
            InputError: Lines have another number of columns than the rest, or no blank line
                ends a sentence.
        """
        with open_text(path, reading.encoding) as file:
            separator, width = _shape(file, path)
            file.seek(0)
            stray: list[int] = []
            sentences = longest = 0
            for first, values in _sentences(file, separator, width, stray):
                sentences, longest = sentences + 1, max(longest, len(values))
                columns = dict(enumerate(zip(*values, strict=True)))
                named = (
                    {"token": columns[0], "tag": columns[width - 1]} if width > 1 else {"token": columns[0]}
                )
                yield f"{path}:{first}", {**columns, **named}
        if stray:
            _report_stray(path, stray, width, skip=reading.stray_lines == "skip")
        if sentences == 1 and longest > _GIANT:
            raise InputError(
                f"the file is one sentence of {longest:,} words",
                where=str(path),
                hint="a blank line ends a sentence",
            )


def _shape(file: IO[str], path: Path) -> tuple[str | None, int]:
    """The separator (`None`: any white space) and the number of columns of most lines."""
    lines = [line for line in islice(file, _LINES_LOOKED_AT) if line.strip() and not line.startswith("#")]
    if not lines:
        file.seek(0)
        lines = [line for line in islice(file, _LINES_LOOKED_AT) if line.strip()]
    separator = "\t" if sum("\t" in line for line in lines) * 2 > len(lines) else None
    counts = Counter(len(_columns(line, separator)) for line in lines)
    width = counts.most_common(1)[0][0]
    if width == 1 and separator is None and any(";" in line or "," in line for line in lines[:5]):
        raise InputError(
            f"the lines have one column, such as {lines[0].strip()!r:.60}",
            where=str(path),
            hint="columns are separated by tabs or spaces",
        )
    return separator, width


def _sentences(
    file: IO[str], separator: str | None, width: int, stray: list[int]
) -> Iterator[tuple[int, list[list[str]]]]:
    """First line and columns of every sentence; lines of another width go to `stray`."""
    first, sentence = 0, list[list[str]]()
    for number, line in enumerate(chain(file, ["\n"]), 1):
        values = _columns(line, separator)
        if not line.strip() or values[0] == _DOCUMENT:
            if sentence:
                yield first, sentence
            sentence = []
        elif len(values) == width:
            first = first if sentence else number
            sentence.append(values)
        elif not line.startswith("#"):
            # A comment has another width than the data; a word that begins with # has the same.
            stray.append(number)


def _columns(line: str, separator: str | None) -> list[str]:
    line = line.rstrip("\r\n")
    return [value.strip() for value in line.split(separator)] if separator else line.split() or [""]


def _report_stray(path: Path, stray: list[int], width: int, *, skip: bool) -> None:
    numbers = ", ".join(map(str, stray[:_MOST_LINES_NAMED])) + (", ..." if len(stray) > 10 else "")
    many = (
        f"{len(stray)} line{'s do' if len(stray) > 1 else ' does'} not have the {width} columns of the rest"
    )
    if skip:
        log.warning("  note: %s: %s and %s skipped (%s)", path.name, many, "are" if len(stray) > 1 else "is",
                    numbers)  # fmt: skip
        return
    raise InputError(
        many,
        where=f"{path}:{stray[0]}",
        hint=f"lines {numbers}; mend them, or set data.stray_lines: skip to leave them out",
    )
