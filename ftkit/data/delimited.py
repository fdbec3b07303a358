"""Files of delimited values: csv and tsv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.text import open_text
from ftkit.errors import InputError

# The csv module refuses values over 128 KiB by default; documents are longer than that.
csv.field_size_limit(2**30)


class Csv(Format):
    """Comma-separated values; a value in double quotes may hold commas and line ends."""

    type: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        return _rows(path, reading, delimiter=",", quoting=csv.QUOTE_MINIMAL, strict=True)


class Tsv(Format):
    """Tab-separated values; quotation marks are part of the text, as in most tsv data sets."""

    type: Literal["tsv"] = "tsv"
    suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".tab")

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        return _rows(path, reading, delimiter="\t", quoting=csv.QUOTE_NONE, strict=False)


def _rows(path: Path, reading: Reading, **dialect: Any) -> Iterator[Row]:
    with open_text(path, reading.encoding) as file:
        reader = csv.reader(file, **dialect)
        columns = _header(path, next(reader)) if reading.header else None
        line = reader.line_num + 1 if columns else 1
        try:
            for values in reader:
                if values:
                    where = f"{path}:{line}"
                    columns = columns or list(range(len(values)))
                    yield where, _row(where, columns, values)
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"the quoting is broken: {error}",
                where=f"{path}:{line}",
                hint='inside a quoted value, write " as ""',
            ) from None


def _header(path: Path, names: list[str]) -> list[Any]:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"column {duplicates[0]!r} stands twice in the header", where=f"{path}:1")
    return [name.strip() for name in names]


def _row(where: str, columns: list[Any], values: list[str]) -> dict[Any, Any]:
    if len(values) != len(columns):
        raise InputError(
            f"{len(values)} values where the header has {len(columns)} columns",
            where=where,
            hint="quote a value that holds the delimiter or a line end",
        )
    return dict(zip(columns, values, strict=True))
