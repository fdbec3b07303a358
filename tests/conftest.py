"""Fixtures that every test may use: tiny models, small data, the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Nothing in the suite may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# What `datasets` and ftkit keep stays out of the developer's home, here and in subprocesses.
_CACHE = tempfile.TemporaryDirectory(prefix="ftkit-cache-")
os.environ["HF_DATASETS_CACHE"] = f"{_CACHE.name}/datasets"
os.environ["XDG_CACHE_HOME"] = _CACHE.name

sys.path.insert(0, str(Path(__file__).parent))

from forked import Forks
from tiny import build_model, write_colours


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("bert")` is the folder of a tiny pretrained model of that architecture."""
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = build_model(architecture, tmp_path_factory.mktemp("tiny") / architecture)
        return folders[architecture]

    return get


@pytest.fixture(scope="session")
def whole(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model whose checkpoint holds its language model head."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kinds: dict[str, Any] = {"t5": AutoModelForSeq2SeqLM, "bert": AutoModelForMaskedLM}
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in folders:
            folder = tmp_path_factory.mktemp("whole") / architecture
            torch.manual_seed(1)
            kind = kinds.get(architecture, AutoModelForCausalLM)
            kind.from_pretrained(tiny(architecture)).save_pretrained(folder)
            AutoTokenizer.from_pretrained(tiny(architecture)).save_pretrained(folder)
            folders[architecture] = folder
        return folders[architecture]

    return get


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test csv files: three labels that a tiny model learns."""
    folder = tmp_path_factory.mktemp("colours")
    for split, rows, seed in (("train", 45, 0), ("validation", 15, 1), ("test", 15, 2)):
        write_colours(folder / f"{split}.csv", rows, seed)
    return folder


@pytest.fixture(scope="session")
def still(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model without dropout."""

    def get(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp("still") / architecture
        shutil.copytree(tiny(architecture), folder)
        config = json.loads((folder / "config.json").read_text())
        config = {
            key: 0.0 if "drop" in key and isinstance(value, float) else value for key, value in config.items()
        }
        config |= {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.0, "seq_classif_dropout": 0.0}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return get


@pytest.fixture
def recipe(tiny: Callable[[str], Path], colours: Path, tmp_path: Path) -> dict[str, object]:
    """A recipe tree that trains a tiny BERT in a second or two, in fp32."""
    return {
        "task": {"type": "classification"},
        "model": {"name_or_path": str(tiny("bert"))},
        "data": {"data_dir": str(colours)},
        "method": "full",
        "training": {
            "num_train_epochs": 2,
            "learning_rate": 5.0e-3,
            "per_device_train_batch_size": 8,
        },
        "engine": {"precision": "fp32"},
        "output_dir": str(tmp_path / "run"),
        "seed": 7,
    }


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs commands in forks of a process that has imported the libraries."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def ftkit(tmp_path: Path, forks: Forks) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, in the test's folder."""

    def run(
        *arguments: object,
        cwd: Path = tmp_path,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        return forks.run(tuple(map(str, arguments)), cwd=cwd, typed=input, timeout=300)

    return run


@pytest.fixture
def recipe_file(recipe: dict[str, object], tmp_path: Path) -> Path:
    """The recipe as a file (JSON is YAML)."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    return path
