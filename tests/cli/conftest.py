"""Fixtures of the tests of bad input: a recipe that is right, and a command that must refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

RECIPE = """\
task: classification
model: {name_or_path: MODEL}
data: {train_file: train.csv, test_file: test.csv}
method: full
training: {num_train_epochs: 1}
output_dir: run
"""


@pytest.fixture(scope="session")
def looks_like_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that `ftkit check` accepts; nothing in it can be loaded."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": numpy.zeros(1000, dtype=numpy.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path, looks_like_bert: Path) -> Path:
    """A folder with `recipe.yaml` and its data, all right so far."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\na red {split},red\na green {split},green\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(looks_like_bert)))
    return tmp_path


@pytest.fixture
def say(folder: Path) -> Callable[..., None]:
    """`say("method: lora")` puts that in the place of the recipe's line for `method`, or at its end."""

    def put(*lines: str) -> None:
        path = folder / "recipe.yaml"
        said = path.read_text().splitlines()
        for line in lines:
            key = line.partition(":")[0]
            places = [n for n, old in enumerate(said) if old.partition(":")[0] == key]
            if places:
                said[places[0]] = line
            else:
                said.append(line)
        path.write_text("\n".join(said) + "\n")

    return put


@pytest.fixture
def refused(ftkit: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail as a tool fails, not as a program breaks; returns its error.

    Args of the function:
        code: The exit code.
        arguments: The command.
        says: What the error must say.
        lines: The most lines it may take.
        prints: Whether results stand on standard output, as before a gate that fails.
        watch: Folders that must stay as they are, besides the test's own.
        makes: Names in the test's folder that may appear.
    """

    def run(
        code: int,
        *arguments: object,
        says: tuple[str, ...] | str = (),
        lines: int = 3,
        prints: bool = False,
        watch: tuple[Path, ...] = (),
        makes: tuple[str, ...] = (),
        **options: object,
    ) -> str:
        watched = (tmp_path, *watch)
        before = [_content(folder, makes) for folder in watched]
        result = ftkit(*arguments, **options)
        assert result.returncode == code not in (0, 1), result.stderr
        assert "Traceback" not in result.stderr
        assert bool(result.stdout) == prints
        start = result.stderr.lower().find("error: ")
        assert start >= 0, result.stderr
        error = result.stderr[start:].strip()
        assert len(error.splitlines()) <= lines, error
        for words in (says,) if isinstance(says, str) else says:
            assert words in error, f"{words!r} is not in: {error}"
        assert [_content(folder, makes) for folder in watched] == before
        return error

    return run


def _content(folder: Path, but: tuple[str, ...]) -> dict[str, bytes | None]:
    """Every file below a folder with what it holds."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in found.items()
        if Path(name).parts[0] not in but
    }
