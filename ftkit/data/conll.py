"""CoNLL files: a word a line with its tags in columns, a blank line between sentences."""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_HASHTAG = re.compile(r"#\w\S*")


class Conll(Format):
    """A word a line with columns (token, ..., tag), separated by tabs or spaces."""

    type: Literal["conll"] = "conll"
    suffixes: ClassVar[tuple[str, ...]] = (".conll", ".bio", ".iob", ".iob2", ".conll2003")
    numbered: ClassVar[bool] = True

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        """A row a sentence: the values of each column by its number.

        Raises:
            InputError: Lines have another number of columns than the rest, or no blank line
                ends a sentence.
        """
        with open_text(path, reading.encoding) as file:
            shape = _Shape.of(file, path)
            file.seek(0)
            stray: list[int] = []
            sentences = _sentences(file, shape, stray)
            sentences = _refuse_giant(sentences, path)
            for first, values in sentences:
                if stray and reading.stray_lines == "error":
                    # The rest is looked at only to name all such lines at once.
                    deque(sentences, maxlen=0)
                    raise _stray_error(path, stray, shape.width)
                yield f"{path}:{first}", dict(enumerate(zip(*values, strict=True)))
        if stray and reading.stray_lines == "error":
            raise _stray_error(path, stray, shape.width)
        if stray:
            skipped = "is skipped" if len(stray) == 1 else "are skipped"
            many = _many(stray, shape.width)
            log.warning("  note: %s: %s and %s (%s)", path.name, many, skipped, _listed(stray))


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the lines of a file are made: what separates columns, how many there are, its tags."""

    tabs: bool
    width: int
    tags: frozenset[str]

    @classmethod
    def of(cls, file: IO[str], path: Path) -> _Shape:
        """The shape of most of the first lines; comments do not count."""
        filled = (line for line in file if not _blank(line) and not _like_comment(line))
        lines = list(islice(filled, _LINES_LOOKED_AT))
        tabs = sum("\t" in line for line in lines) * 2 > len(lines)
        rows = [_columns(line, tabs) for line in lines]
        width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 1
        if width == 1 and not tabs and any("," in line or ";" in line for line in lines[:5]):
            raise InputError(
                f"the lines have one column, such as {lines[0].strip()!r:.60}",
                where=str(path),
                hint="columns are separated by tabs or spaces",
            )
        return cls(tabs, width, frozenset(row[-1] for row in rows))

    def is_comment(self, line: str, values: Sequence[str]) -> bool:
        """A comment has another width than the data, or a last column that is no tag."""
        if not line.startswith("#") or _HASHTAG.fullmatch(line.rstrip()):
            # A hashtag that is alone in its line lacks its tag.
            return False
        if self.width == 1:
            return len(values) > 1
        tag = values[-1]
        return len(values) != self.width or (
            _like_comment(line) and tag not in self.tags and not re.fullmatch(r"O|[A-Z]-.+", tag)
        )


def _sentences(file: IO[str], shape: _Shape, stray: list[int]) -> Iterator[tuple[int, list[list[str]]]]:
    """First line and columns of every sentence; lines of another width go to `stray`."""
    first, sentence = 0, list[list[str]]()
    for number, line in enumerate(chain(file, ["\n"]), 1):
        values = _columns(line, shape.tabs)
        if _blank(line) or values[0] == _DOCUMENT:
            if sentence:
                yield first, sentence
            sentence = []
        elif shape.is_comment(line, values):
            continue
        elif len(values) == shape.width:
            first = first if sentence else number
            sentence.append(values)
        else:
            stray.append(number)


def _refuse_giant(
    sentences: Iterator[tuple[int, list[list[str]]]], path: Path
) -> Iterator[tuple[int, list[list[str]]]]:
    """A file that is one long sentence lacks its blank lines."""
    first = next(sentences, None)
    second = next(sentences, None)
    if first and not second and len(first[1]) > _GIANT:
        raise InputError(
            f"the file is one sentence of {len(first[1]):,} words",
            where=f"{path}:{first[0]}",
            hint="a blank line ends a sentence",
        )
    yield from (sentence for sentence in (first, second) if sentence)
    yield from sentences


def _blank(line: str) -> bool:
    return not line.strip(" \t\r\n")


def _like_comment(line: str) -> bool:
    """`# a comment`; the word `#tag` and the word `#` before a tab are none."""
    return line.startswith("# ") or line.rstrip("\r\n") == "#"


def _columns(line: str, tabs: bool) -> list[str]:
    """Only tabs and spaces separate: other white space of Unicode stands inside words."""
    line = line.rstrip("\r\n")
    if tabs:
        return [value.strip(" ") for value in line.split("\t")]
    return re.split(r"[ \t]+", line.strip(" \t"))


def _many(stray: Sequence[int], width: int) -> str:
    lines = "1 line does" if len(stray) == 1 else f"{len(stray)} lines do"
    return f"{lines} not have the {width} columns of the rest"


def _listed(stray: Sequence[int]) -> str:
    more = ", ..." if len(stray) > _MOST_LINES_NAMED else ""
    return ", ".join(map(str, stray[:_MOST_LINES_NAMED])) + more


def _stray_error(path: Path, stray: Sequence[int], width: int) -> InputError:
    return InputError(
        _many(stray, width),
        where=f"{path}:{stray[0]}",
        hint=f"lines {_listed(stray)}; mend them, or set data.stray_lines: skip to leave them out",
    )
