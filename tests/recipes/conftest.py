"""Fixtures of the recipe tests: stand-ins for Hub data sets, and a data set cache of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from standins import STANDINS


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the rows that `datasets` caches out of the developer's home, here and in subprocesses."""
    import datasets

    cache = tmp_path_factory.mktemp("datasets-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`standin("stanfordnlp/sst2")` is a local folder with that data set's layout, columns and labels."""
    folders: dict[str, Path] = {}

    def get(dataset: str) -> Path:
        if dataset not in folders:
            folders[dataset] = tmp_path_factory.mktemp("hub") / dataset
            STANDINS[dataset].write(folders[dataset])
        return folders[dataset]

    return get
