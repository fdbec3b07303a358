"""Fixtures of the recipe tests: stand-ins for the recipes' data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from standins import STANDINS


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
