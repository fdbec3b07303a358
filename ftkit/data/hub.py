"""Data sets from the Hugging Face Hub, or from a local folder laid out like one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftkit.data.base import Row
from ftkit.errors import InputError


class HubDataset:
    """One configuration of a Hub data set, loaded split by split.

    Args:
        name: Hub id, or a local folder in Hub layout.
        config_name: Which configuration, where the data set has several.
        revision: Branch, tag or commit.
    """

    def __init__(self, name: str, config_name: str | None, revision: str | None) -> None:
        self.name = name
        self.config_name = config_name
        self.revision = revision

    def split_names(self) -> list[str]:
        """The splits the data set has."""
        import datasets

        return list(self._call(datasets.get_dataset_split_names))

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the rows of a split, class numbers replaced by their names, -1 by `None`."""
        data = self._load(split)
        named = {
            column: names for column, feature in data.features.items() if (names := _class_names(feature))
        }
        for number, row in enumerate(data, 1):
            for column, names in named.items():
                row[column] = _name(row[column], names)
            yield f"{self.name}[{split}] row {number}", row

    def class_names(self, split: str, column: str) -> tuple[str, ...]:
        """The class names a column declares, in their order; empty where it declares none."""
        feature = self._load(split).features.get(column)
        return tuple(_class_names(feature) or ())

    def _load(self, split: str) -> Any:
        import datasets

        try:
            return self._call(datasets.load_dataset, split=split)
        except ValueError as error:
            if "Unknown split" not in str(error):
                raise
            raise InputError(
                f"no split {split!r}",
                where=f"data set {self.name}",
                hint=f"it has: {', '.join(self.split_names())}",
            ) from None

    def _call(self, load: Any, **arguments: Any) -> Any:
        """Call a `datasets` function and explain the failures a user can mend."""
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        try:
            return load(self.name, self.config_name, revision=self.revision, **arguments)
        except (DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError, ConnectionError) as error:
            raise InputError(
                f"cannot be loaded: {_first_line(error)}",
                where=f"data set {self.name}",
                hint="check the id, the network and (for a private or gated set) `hf auth login`; "
                "without a network, give local files under data",
            ) from None
        except ValueError as error:
            if "onfig" in str(error) and "Unknown split" not in str(error):
                raise InputError(
                    _first_line(error),
                    where=f"data set {self.name}",
                    hint="set data.dataset_config_name",
                ) from None
            raise


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _class_names(feature: Any) -> list[str] | None:
    """Names of a `ClassLabel` column, or of a list of them."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None)


def _name(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [names[number] for number in value]
    return None if value is None or value < 0 else names[value]
