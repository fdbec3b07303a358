"""A JSON file that holds a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.jsonlines import without_repeats
from ftkit.data.text import open_text
from ftkit.errors import InputError


class JsonArray(Format):
    """A list of JSON objects, or an object whose `data` is that list."""

    type: Literal["json"] = "json"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        with open_text(path, reading.encoding) as file:
            text = file.read()
        try:
            values = json.loads(text, object_pairs_hook=without_repeats)
        except json.JSONDecodeError as error:
            raise InputError(
                f"broken JSON: {error.msg} (column {error.colno})",
                where=f"{path}:{error.lineno}",
                hint="a file with one object a line needs the suffix .jsonl, or data.format: jsonl",
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"broken JSON: {error}", where=str(path)) from None
        if isinstance(values, dict):
            values = values.get("data")
        if not isinstance(values, list):
            raise InputError("a list of objects (or an object with `data`) is needed", where=str(path))
        for number, value in enumerate(values, 1):
            where = f"{path} item {number}"
            if not isinstance(value, dict):
                raise InputError(f"an object is needed, not {value!r:.40}", where=where)
            yield where, value
