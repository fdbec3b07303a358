"""Write a local folder as a data set lies on the Hub: Parquet files, and a card that names them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

Rows = Mapping[str, list[Any]]


def write(folder: Path, features: datasets.Features, splits: Mapping[str, Rows], config: str = "") -> None:
    """Add one configuration to the folder, as `push_to_hub` would.

    Args:
        folder: The data set; made where it does not exist.
        features: Columns, with class names.
        splits: The columns' values, by split.
        config: The configuration's name; by default the only one, in `data/`.
    """
    subfolder = config or "data"
    info = DatasetInfo(features=features, splits=SplitDict(), config_name=config or "default")
    for split, rows in splits.items():
        path = folder / subfolder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = datasets.Dataset.from_dict(dict(rows), features=features)
        data.to_parquet(path)
        info.splits.add(SplitInfo(split, num_examples=len(data), num_bytes=data.data.nbytes))
    info.dataset_size = sum(split.num_bytes for split in info.splits.values())
    info.download_size = info.dataset_size
    files = [{"split": split, "path": f"{subfolder}/{split}-*"} for split in splits]
    _add_to_card(folder / "README.md", config or "default", info, files)


def write_converted(
    folder: Path, features: datasets.Features, splits: Mapping[str, Rows], config: str
) -> None:
    """Write a configuration as the branch refs/convert/parquet holds it: Parquet files and no card."""
    for split, rows in splits.items():
        path = folder / config / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_dict(dict(rows), features=features).to_parquet(path)


def write_files(folder: Path, files: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Write rows to files that somebody uploaded as they were, with no card to say what is in them.

    Args:
        folder: The data set.
        files: Rows by file name; the suffix is csv, json (one list) or jsonl.
    """
    folder.mkdir(parents=True)
    for name, rows in files.items():
        path = folder / name
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif path.suffix == ".json":
            path.write_text(json.dumps(list(rows), indent=4), encoding="utf-8")
        else:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _add_to_card(path: Path, config: str, info: DatasetInfo, files: list[dict[str, str]]) -> None:
    data = DatasetCard.load(path).data if path.is_file() else DatasetCardData()
    DatasetInfosDict({config: info}).to_dataset_card_data(data)
    MetadataConfigs({config: {"data_files": files}}).to_dataset_card_data(data)
    DatasetCard(f"---\n{data}\n---\n").save(path)
