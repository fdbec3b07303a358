"""Files of delimited values: csv and tsv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.text import open_text
from ftkit.errors import InputError

# The csv module refuses values over 128 KiB by default; documents are longer than that.
csv.field_size_limit(2**30)


class Csv(Format):
    """Values between commas (or `data.delimiter`); in double quotes they may hold these, and line ends."""

    type: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    numbered: ClassVar[bool] = True

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        return _rows(
            path, reading, delimiter=reading.delimiter or ",", quoting=csv.QUOTE_MINIMAL, strict=True
        )


class Tsv(Format):
    """Tab-separated values; quotation marks are part of the text, as in most tsv data sets."""

    type: Literal["tsv"] = "tsv"
    suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".tab")
    numbered: ClassVar[bool] = True

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        return _rows(path, reading, delimiter="\t", quoting=csv.QUOTE_NONE, strict=False)


def _rows(path: Path, reading: Reading, *, delimiter: str, **dialect: Any) -> Iterator[Row]:
    with open_text(path, reading.encoding) as file:
        reader = csv.reader(file, delimiter=delimiter, **dialect)
        columns: list[Any] | None = None
        line = 1
        try:
            for values in reader:
                where = f"{path}:{line}"
                line = reader.line_num + 1
                if not values:
                    continue
                if columns is None and reading.header:
                    columns = _header(where, values, delimiter)
                    continue
                columns = columns or list(range(len(values)))
                yield where, _row(where, columns, values, reading, quotes=dialect["strict"])
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            raise InputError(
                "a quotation mark is opened here and never closed"
                if unclosed
                else f"the quoting is broken: {error}",
                where=f"{path}:{line}",
                hint='inside a quoted value, write " as ""',
            ) from None


def _header(where: str, names: list[str], delimiter: str) -> list[Any]:
    names = [name.strip() for name in names]
    other = next((d for d in ",;\t|" if d != delimiter and d in names[0]), None)
    if len(names) == 1 and other:
        raise InputError(
            f"the header is one column, {names[0]!r:.80}, with {other!r} and not {delimiter!r} in it",
            where=where,
            hint=f"set data.format: csv and data.delimiter: {json.dumps(other)}",
        )
    # A spreadsheet's empty columns have no names.
    duplicates = sorted({name for name in names if name and names.count(name) > 1})
    if duplicates:
        raise InputError(
            f"column {duplicates[0]!r:.80} stands twice in the header",
            where=where,
            hint="a file without a header needs numbers, such as data.columns: {text: 0, label: 1}",
        )
    return names


def _row(
    where: str, columns: list[Any], values: list[str], reading: Reading, *, quotes: bool
) -> dict[Any, Any]:
    if len(values) != len(columns):
        first = "the header has" if reading.header else "the first row has"
        raise InputError(
            f"{len(values)} value{'' if len(values) == 1 else 's'} where {first} {len(columns)}",
            where=where,
            hint="quote a value that holds the delimiter or a line end"
            if quotes
            else 'where values stand in quotes, set data.format: csv and data.delimiter: "\\t"',
        )
    return dict(zip(columns, values, strict=True))
