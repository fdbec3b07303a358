"""Encoded rows kept between starts, by the content of all that makes them.

An entry is a folder `~/.cache/ftkit/tokenized/<key>` (by the XDG rules) with the columns of a `FeatureTable`,
which are mapped into memory and not read into it. It is written under another name and renamed, so it is
whole or not there; `index.json` holds the SHA-256 of each file, which is compared before an entry is used.
When all are larger than 20 GB together, those go that were not used for longest. The folder can be deleted
at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ftkit.files import cache_folder, file_sha256
from ftkit.records import Record
from ftkit.training.features import FeatureTable, mapped
from ftkit.training.heads import Encoded, Objective
from ftkit.training.processes import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

_MOST_BYTES = 20_000_000_000
_ROWS_THAT_TAKE_LONG = 10_000
_INDEX, _OWNERS = "index.json", "owners.npy"
# Chat templates are rendered by these and by ftkit; token ids are the last one's.
_MAKERS = ("jinja2", "transformers", "tokenizers")


def encode_once(
    objective: Objective,
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    task: str,
    training: bool,
) -> Encoded:
    """What the objective makes of records, taken from the cache where an earlier start has left it there.

    On each machine one process encodes, and the others take what it has written.

    Args:
        objective: Encodes.
        records: What it encodes.
        tokenizer: With its special tokens and its chat template complete.
        max_length: The longest input in tokens.
        task: The settings that are in the objective's functions.
        training: Whether the rows are to learn from.
    """
    encode = objective.training_rows if training else objective.encode
    state = _tokenizer_state(tokenizer)
    if state is None:
        return encode(records, tokenizer, max_length)
    settings = [training, type(objective).__name__, _settings(objective), task, max_length, state]
    folder = cache_folder("tokenized") / _key(settings, records)
    with processes().local_main_process_first():
        if found := _look_up(folder, records):
            return found
        _say("tokenizing %s rows", records)
        return _keep(folder, records, encode(records, tokenizer, max_length))


# Keys -----------------------------------------------------------------------------------


def _key(settings: Sequence[Any], records: Sequence[Record]) -> str:
    """SHA-256 over all that the encoded rows depend on; not over the places where records stand."""
    versions = [version(package) for package in _MAKERS]
    digest = hashlib.sha256(repr([*settings, versions, _code()]).encode())
    for record in records:
        content = (record.question(), record.target, record.words)
        digest.update(repr(content).encode())
    return digest.hexdigest()


def _code() -> str:
    """SHA-256 over ftkit's own source: an entry does not outlive the code that made it."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any] | None:
    """All that decides how texts become ids; `None` for a tokenizer in Python, which cannot tell it."""
    if not tokenizer.is_fast:
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both are said in each call, and left in the tokenizer by the one before.
    backend |= {"truncation": None, "padding": None}
    return [
        json.dumps(backend),
        str(tokenizer.chat_template),
        type(tokenizer).__name__,
        tokenizer.special_tokens_map,
        tokenizer.model_input_names,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
    ]


def _settings(objective: Objective) -> dict[str, Any]:
    """The objective's settings save its functions, which have no content to compare."""
    assert is_dataclass(objective)
    values = {field.name: getattr(objective, field.name) for field in fields(objective)}
    return {name: value for name, value in values.items() if not callable(value)}


# Entries --------------------------------------------------------------------------------


def _look_up(folder: Path, records: Sequence[Record]) -> Encoded | None:
    """The entry, if it is there, whole, and says nothing about rows that stand elsewhere now."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        found = _opened(folder, index)
        if index["notes"] and index["places"] != _places(records):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        if folder.exists():
            log.warning("  note: the tokenized rows in %s are damaged (%s); tokenizing again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
        return None
    _say("%s rows were tokenized before", records)
    return found


def _opened(folder: Path, index: dict[str, Any]) -> Encoded:
    """What an entry holds.

    Raises:
        OSError: A file is not there.
        ValueError: One is not as it was written.
    """
    for name, expected in index["files"].items():
        if file_sha256(folder / name) != expected:
            raise ValueError(f"{name} has changed")
    return Encoded(
        FeatureTable.mapped(folder, index["names"], index["rows"]),
        mapped(folder / _OWNERS),
        index["truncated"],
        tuple(index["notes"]),
    )


def _keep(folder: Path, records: Sequence[Record], encoded: Encoded) -> Encoded:
    """Write an entry; returns the same rows from there, or as they are where nothing can be written."""
    table = encoded.features if isinstance(encoded.features, FeatureTable) else FeatureTable(encoded.features)
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder.parent))
        table.save(draft)
        numpy.save(draft / _OWNERS, numpy.asarray(encoded.owners, dtype=numpy.int64))
        index = {
            "rows": len(table),
            "names": table.names,
            "truncated": encoded.truncated,
            "notes": encoded.notes,
            "places": _places(records),
            "files": {path.name: file_sha256(path) for path in sorted(draft.iterdir())},
        }
        (draft / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have been faster; its folder has the same content.
            if not folder.is_dir():
                raise
        _make_room(folder)
        return _opened(folder, index)
    except (OSError, ValueError) as error:
        log.warning("  note: the tokenized rows cannot be kept in %s: %s", folder.parent, error)
        return Encoded(table, encoded.owners, encoded.truncated, encoded.notes)
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _make_room(newest: Path) -> None:
    """Remove the entries that were not used for longest, until the others are small enough together."""
    with suppress(FileNotFoundError):  # Another process makes room as well.
        entries = [entry for entry in newest.parent.iterdir() if entry.is_dir()]
        used = {entry: entry.stat().st_mtime for entry in entries if entry != newest}
        sizes = {entry: sum(path.stat().st_size for path in entry.iterdir()) for entry in entries}
        for entry in sorted(used, key=used.__getitem__):
            if sum(sizes.values()) <= _MOST_BYTES:
                return
            shutil.rmtree(entry, ignore_errors=True)
            del sizes[entry]


def _say(text: str, records: Sequence[Record]) -> None:
    level = logging.INFO if len(records) >= _ROWS_THAT_TAKE_LONG else logging.DEBUG
    log.log(level, f"  {text}", f"{len(records):,}")


def _places(records: Sequence[Record]) -> str:
    """SHA-256 over where records stand, which notes tell."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.where}\n".encode())
    return digest.hexdigest()
