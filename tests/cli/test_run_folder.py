"""A run folder that two want to write, or that a stopped process left; what others find in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ftkit as library
from ftkit.errors import UsageError
from ftkit.exporting import export
from ftkit.run import Run
from ftkit.training.engine import Engine
from ftkit.training.estimator import TrainedEstimator


@pytest.mark.parametrize("again", ["--overwrite", "--resume"])
def test_two_processes_do_not_write_one_run(
    again: str, recipe: dict[str, Any], ftkit: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is refused; the first one's run is whole."""
    said: list[Any] = []
    step = Engine.training_step

    def training_step(self: Any, *given: Any, **options: Any) -> Any:
        if not said:
            said.append(ftkit("finetune", recipe_file, again))
        return step(self, *given, **options)

    monkeypatch.setattr(Engine, "training_step", training_step)
    run = library.finetune(recipe)
    (other,) = said
    assert other.returncode == 2
    assert "another process is writing this run" in other.stderr
    assert library.evaluate(run).metrics == run.metrics
    assert not [path.name for path in run.folder.iterdir() if path.name.startswith(".")]


def test_a_stopped_run_can_be_taken_up_in_the_same_process(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "training_step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError) as held:
            library.finetune(recipe)
    assert library.finetune(recipe, resume=True).finished
    assert held.tb, "what was raised still holds the run that failed"


def test_a_run_goes_on_where_its_files_lie_elsewhere(
    recipe: dict[str, Any], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another workspace of the same job; other rows are refused, and the run's recipe follows."""
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(colours, before)
    recipe["data"] = {"data_dir": str(before)}
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "training_step", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            library.finetune(recipe)
    before.rename(after)
    moved = recipe | {"data": {"data_dir": str(after)}, "gates": {"accuracy": {"min": 0.0}}}
    test = (after / "test.csv").read_text()
    (after / "test.csv").write_text(test + "one more red,red\n")
    with pytest.raises(UsageError, match="the data is not what this run was started with"):
        library.finetune(moved, resume=True)
    (after / "test.csv").write_text(test)
    with pytest.raises(UsageError, match="the recipe is not the one"):
        library.finetune(moved | {"seed": 99}, resume=True)
    run = library.finetune(moved, resume=True)
    assert library.evaluate(run.folder).metrics == run.metrics
    assert library.finetune(moved, resume=True).metrics == run.metrics


def test_a_full_disk_leaves_no_half_run(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_write_manifest", full)
        with pytest.raises(OSError, match="No space left"):
            library.finetune(recipe)
    assert library.finetune(recipe, resume=True).finished


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_run_that_never_began_is_no_run(option: str, recipe: dict[str, Any]) -> None:
    """A full disk leaves a part of a recipe."""
    folder = Path(recipe["output_dir"])
    folder.mkdir()
    (folder / "recipe.yaml.tmp").write_text("")
    (folder / ".ftkit.lock").write_text("")
    assert library.finetune(recipe, **{option: True}).finished


def test_a_baseline_of_other_rows_is_said(recipe: dict[str, Any], ftkit: Any, tmp_path: Path) -> None:
    finished = library.finetune(recipe).folder
    (tmp_path / "base.json").write_bytes((finished / "metrics.json").read_bytes())
    gate = ("--set", "gates={accuracy: {baseline: base.json, max_drop: 1.0}}")
    same = ftkit("eval", finished, *gate)
    assert same.returncode == 0, same.stderr
    assert "other rows" not in same.stderr
    other = ftkit("eval", finished, *gate, "--split", "validation")
    assert "the baseline" in other.stderr
    assert "is of other rows (15 test) than these" in other.stderr
    gone = ftkit("eval", finished, "--set", "gates={accuracy: {baseline: gone.json, max_drop: 1.0}}")
    assert gone.returncode == 3
    assert "Evaluating" not in gone.stderr, "before anything is computed"


def test_what_is_saved_does_not_hang_on_the_cache(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The tokenizer keeps neither a cut nor padding of the calls before; others may read the weights."""
    for name in ("first", "second"):
        run = library.finetune(recipe | {"output_dir": str(tmp_path / name)})
        saved = json.loads((run.folder / "model/tokenizer.json").read_text())
        assert (saved["truncation"], saved["padding"]) == (None, None)
        modes = {path.stat().st_mode for path in (run.folder / "model").iterdir()}
        assert len(modes) == 1


def test_an_export_is_whole_or_not_there(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = library.finetune(recipe | {"method": "lora"})

    def stopped(self: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainedEstimator, "merge", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(str(run.folder), merge=True)
    assert not (run.folder / "export").exists()
    folder = export(str(run.folder), merge=True)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".*"))
