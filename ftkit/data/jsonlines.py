"""One JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.data.text import open_text
from ftkit.errors import InputError


class JsonLines(Format):
    """One JSON object a line; empty lines are skipped."""

    type: Literal["jsonl"] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        with open_text(path, reading.encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield where, parse_object(line, where)


def parse_object(line: str, where: str) -> dict[str, object]:
    """Read one JSON object, or raise an `InputError` that names the place."""
    hint = "each line holds one JSON object; a file with one list of objects needs the suffix .json"
    try:
        value = json.loads(line.rstrip(), object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON: {error.msg} (column {error.colno})", where=where, hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON: {error}", where=where) from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON object is needed, not {value!r:.40}", where=where, hint=hint)
    return value


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two values for one key, Python would take the last in silence.

    Raises:
        ValueError: A key stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found
