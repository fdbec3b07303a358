"""Texts without columns: a file that is one text, or one a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.text import open_text


class PlainText(Format):
    """A whole file as one row with the column `text`."""

    type: Literal["text"] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        with open_text(path, reading.encoding) as file:
            yield str(path), {"text": file.read()}


class Lines(Format):
    """Each line as a row with the column `text`; empty lines are skipped."""

    type: Literal["lines"] = "lines"
    suffixes: ClassVar[tuple[str, ...]] = ()

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        with open_text(path, reading.encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", {"text": line.rstrip("\r\n")}
