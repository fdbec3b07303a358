"""Data sets from the Hugging Face Hub, or from a local folder laid out like one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ftkit.data.base import Row
from ftkit.errors import InputError, UsageError

# What `datasets` says, and what to do about it. It raises bare ValueErrors and RuntimeErrors, so
# that nothing but their words tells them apart.
_REMEDIES = {
    "Config name is missing": "set data.dataset_config_name to one of them",
    "BuilderConfig": "set data.dataset_config_name to one of them, or leave it out",
    "scripts are no longer supported": "a script that comes with data is never run; take a copy of the "
    "data set in Parquet, or try data.revision: refs/convert/parquet",
    "save_to_disk": "write it with Dataset.to_parquet, and name the files under data",
}
_UNREACHED = (
    "check the id, the network and (for a private or gated set) `hf auth login`; "
    "without a network, give local files under data"
)


class HubDataset:
    """One configuration of a Hub data set, loaded split by split.

    Args:
        name: Hub id, or a local folder in Hub layout.
        config_name: Which configuration, where the data set has several.
        revision: Branch, tag or commit.
        streaming: Whether rows are downloaded as they are read, and not all of them before.
    """

    def __init__(
        self, name: str, config_name: str | None, revision: str | None, *, streaming: bool = False
    ) -> None:
        self.name = name
        self.config_name = config_name
        self.revision = revision
        self.streaming = streaming
        self._splits: dict[str, Any] = {}

    def split_names(self) -> list[str]:
        """The splits the data set has."""
        import datasets

        with self._explaining():
            return list(datasets.get_dataset_split_names(self.name, self.config_name, revision=self.revision))

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the rows of a split, class numbers replaced by their names, -1 by `None`."""
        data = self._load(split)
        features = data.features or {}
        named = {column: names for column, feature in features.items() if (names := _class_names(feature))}
        # What is streamed can fail at any row.
        with self._explaining(split):
            for number, row in enumerate(data, 1):
                for column, names in named.items():
                    row[column] = _name(row[column], names)
                yield f"{self.name}[{split}] row {number}", row

    def class_names(self, split: str, column: str) -> tuple[str, ...]:
        """The class names a column declares, in their order; empty where it declares none."""
        # A stream of files that do not declare their columns has none, and no class names.
        features = self._load(split).features or {}
        return tuple(_class_names(features.get(column)) or ())

    def _load(self, split: str) -> Any:
        """A split, asked for once: even with the rows in the cache, each time costs requests.

        Raises:
            UsageError: Only a part of a stream is asked for.
        """
        import datasets

        if self.streaming and "[" in split:
            raise UsageError(
                f"data.streaming: a stream has no parts such as {split!r}",
                hint=f"name the whole split {split.partition('[')[0]!r} (--limit reads only the first rows), "
                "or set streaming: false",
            )
        if split not in self._splits:
            with self._explaining(split):
                self._splits[split] = datasets.load_dataset(
                    self.name,
                    self.config_name,
                    revision=self.revision,
                    split=split,
                    streaming=self.streaming,
                )
        return self._splits[split]

    @contextmanager
    def _explaining(self, split: str | None = None) -> Iterator[None]:
        """Explain the failures of `datasets` that a user can mend."""
        from datasets.exceptions import DatasetsError

        # The HTTP library's own error: which library that is changes with the version.
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        try:
            yield
        except (DatasetsError, OSError, HTTPError, RuntimeError, ValueError, yaml.YAMLError) as error:
            raise self._explained(error, split) from None

    def _explained(self, error: Exception, split: str | None) -> InputError:
        where = f"data set {self.name}"
        if "Unknown split" in str(error) or "Bad split" in str(error):
            found = ", ".join(self.split_names())
            return InputError(f"no split {split!r}", where=where, hint=f"it has: {found}")
        for words, hint in _REMEDIES.items():
            if words in str(error):
                return InputError(_reason(error), where=where, hint=hint)
        hint = "" if Path(self.name).is_absolute() else _UNREACHED
        return InputError(f"cannot be loaded: {_reason(error)}", where=where, hint=hint)


def _reason(error: Exception) -> str:
    """The error's words on one line, and those of its cause where it only says that it failed."""
    parts = [" ".join(str(one).split()) for one in (error, error.__cause__) if one is not None]
    parts[0] = parts[0].partition(" Example of usage:")[0]
    only_failed = ("could not be parsed", "occurred while generating")
    kept = parts if any(words in parts[0] for words in only_failed) else parts[:1]
    return ": ".join(part.rstrip(".") for part in kept)[:300]


def _class_names(feature: Any) -> list[str] | None:
    """Names of a `ClassLabel` column, or of a list of them."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None)


def _name(value: Any, names: list[str]) -> Any:
    """A class number as its name; `None` where -1 or null says that the answer is not known.

    A number beyond the names stays: whoever reads the row knows how to complain about it.
    """
    if isinstance(value, list):
        found = [_name(number, names) for number in value]
        return None if None in found else found
    if value is None or value < 0:
        return None
    return names[value] if value < len(names) else value
