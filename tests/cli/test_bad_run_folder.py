"""A run folder that is in use, missing or no run; scores and rows that cannot be had from a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import ftkit
from ftkit.run import Run

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def run(tiny: Callable[[str], Path], colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = {
        "task": "classification",
        "model": {"name_or_path": str(tiny("bert"))},
        "data": {"train_file": str(colours / "train.csv"), "test_file": str(colours / "test.csv")},
        "method": "full",
        "training": {"max_steps": 1},
        "output_dir": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
    command = [sys.executable, "-m", "ftkit", "finetune", "recipe.yaml"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.mark.parametrize(
    ("output", "options", "code", "says"),
    [
        ("taken", (), 2, "taken: the run folder is not empty\n  choose another with --set output_dir=DIR"),
        (
            "taken",
            ("--overwrite",),
            2,
            "--overwrite replaces a run folder, and this folder holds something else",
        ),
        ("taken", ("--resume",), 2, "there is no run to resume in this folder"),
        ("train.csv", ("--overwrite",), 2, "train.csv: output_dir is a file, not a folder"),
        ("train.csv/run", (), 3, "train.csv: the run folder cannot be written"),
    ],
)
def test_a_folder_that_is_no_run(
    output: str, options: tuple[str, ...], code: int, says: str, folder: Path, refused: Refused
) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("years of work")
    refused(code, "finetune", "recipe.yaml", "--set", f"output_dir={output}", *options, says=says)


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_a_folder_with_a_manifest_of_something_else(option: str, folder: Path, refused: Refused) -> None:
    """Web apps and browser extensions have a manifest.json as well."""
    (folder / "app").mkdir()
    (folder / "app" / "manifest.json").write_text(json.dumps({"name": "app", "versions": {"node": "20"}}))
    (folder / "app" / "recipe.yaml").write_text("bread: flour")
    refused(2, "finetune", "recipe.yaml", "--set", "output_dir=app", option, says=f"{folder / 'app'}: ")


def test_only_what_a_run_wrote_is_replaced(run: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "run")
    (mine / "notes.txt").write_text("what I learned from it")
    (mine / "predictions.jsonl").write_text("of the old run")
    ftkit.finetune(run.parent / "recipe.yaml", [f"output_dir={mine}"], overwrite=True)
    assert (mine / "notes.txt").read_text() == "what I learned from it"
    assert "of the old run" not in (mine / "predictions.jsonl").read_text()


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("model.name_or_path=run", "run"),
        ("model.name_or_path=run/model", "run/model"),
        ("data.train_file=run/predictions.jsonl", "run/predictions.jsonl"),
        ("gates={accuracy: {baseline: run/metrics.json, max_drop: 1}}", "run/metrics.json"),
    ],
)
def test_what_a_run_starts_from_is_not_removed(
    source: str, path: str, run: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(run, tmp_path / "run")
    options = ("--set", "output_dir=run", "--set", source, "--overwrite")
    says = f"--overwrite would remove what the recipe starts from: {tmp_path / path}"
    refused(2, "finetune", run.parent / "recipe.yaml", *options, says=says)


@pytest.mark.parametrize("kind", ["up and down", "link"])
def test_what_a_run_starts_from_is_known_by_any_path(
    kind: str, run: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    output = "link" if kind == "link" else "no/../run"
    (tmp_path / "no").mkdir()
    options = ("--set", f"output_dir={output}", "--set", "model.name_or_path=run", "--overwrite")
    refused(2, "finetune", run.parent / "recipe.yaml", *options, says="would remove what the recipe starts")


def test_a_run_that_is_killed_among_its_checkpoints_is_finished(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **options: object) -> None:
        assert folder.name == "checkpoints"
        raise KeyboardInterrupt

    monkeypatch.setattr("ftkit.run.shutil", SimpleNamespace(rmtree=killed))
    with pytest.raises(KeyboardInterrupt):
        ftkit.finetune(run.parent / "recipe.yaml", [f"output_dir={tmp_path / 'run'}"])
    assert Run.load(tmp_path / "run").finished


@pytest.mark.parametrize("output", ["/proc/model", "taken.txt"])
def test_a_disk_that_takes_nothing(output: str, run: Path, tmp_path: Path, refused: Refused) -> None:
    # Nobody can make a folder in /proc, not even root, whom permissions do not bind.
    (tmp_path / "taken.txt").write_text("years of work")
    refused(3, "export", run, "--output", output, says=f"{output}: No", watch=(run,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "run: the run folder is not empty\n  go on with --resume, replace it with --overwrite"),
        (
            ("--resume", "--set", "seed=1"),
            "not the one this run was started with:\n  seed: 42 -> 1\n  restore",
        ),
        (("--resume", "--limit", "9"), "the data is not what this run was started with\n  restore the data"),
    ],
)
def test_a_run_is_not_replaced(options: tuple[str, ...], says: str, run: Path, refused: Refused) -> None:
    refused(2, "finetune", run.parent / "recipe.yaml", *options, says=says, watch=(run,))


def test_a_run_is_not_replaced_by_a_failure(
    run: Path, tiny: Callable[[str], Path], tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "other"
    shutil.copytree(tiny("bert"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    options = ("--set", f"model.name_or_path={model}", "--set", "output_dir=run", "--overwrite")
    refused(2, "finetune", run.parent / "recipe.yaml", *options, says="no family takes a model of type 'vit'")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            "early_stopping={patience: 1}",
            "early_stopping needs validation rows with labels",
        ),
        ("training.eval_strategy=steps", "training.eval_strategy needs validation rows with labels"),
        ("training.report_to=nowhere", "training: nowhere is not supported"),
    ],
)
def test_a_run_is_not_replaced_by_what_training_refuses(
    said: str, says: str, run: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(run, tmp_path / "run")
    options = ("--set", "output_dir=run", "--set", said, "--overwrite")
    refused(2, "finetune", run.parent / "recipe.yaml", *options, says=says)


def test_a_run_is_not_replaced_where_no_validation_row_fits(
    run: Path, tiny: Callable[[str], Path], tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for split, target in (("train", "a"), ("validation", "a" * 100)):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": "b", "target": target}))
    recipe = {
        "task": "text2text",
        "model": {"name_or_path": str(tiny("gpt2")), "max_length": 40},
        "data": {"train_file": "train.jsonl", "validation_file": "validation.jsonl"},
        "method": "full",
        "output_dir": "run",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    says = "validation.jsonl:1: none of the 1 validation rows fits with its answer"
    refused(3, "finetune", "recipe.yaml", "--overwrite", says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "recipe.yaml"), "run: there is no run to evaluate\n  train it first with ftkit finetune"),
        (("eval", "."), ".: this folder is neither a recipe nor a run (no manifest.json)"),
        (
            ("predict", ".", "--text", "red"),
            ".: this folder is neither a recipe nor a run (no manifest.json)",
        ),
    ],
)
def test_no_run(arguments: tuple[str, ...], says: str, folder: Path, refused: Refused) -> None:
    refused(2, *arguments, says=says)


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path, refused: Refused) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {"finished": False}))
    refused(
        2, "eval", "run", says="run: this run is not finished\n  go on with ftkit finetune RECIPE --resume"
    )
    recipe = yaml.safe_load((broken / "recipe.yaml").read_text())
    recipe |= {"method": {"type": "prompt", "answer": "cloze", "template": "{{ text }}"}, "training": {}}
    (broken / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    refused(2, "predict", "run", "--text", "red", says="not finished\n  go on with ftkit eval RECIPE")
    (broken / "manifest.json").write_text("{")
    refused(2, "eval", "run", says="run: this is not a run folder (no readable manifest.json)")


def test_two_forms_of_output(run: Path, refused: Refused) -> None:
    options = ("--text", "red", "--json", "--format", "conll")
    refused(2, "predict", run, *options, says="--json and --format conll are two forms", watch=(run,))


def test_a_run_where_a_recipe_is_meant(run: Path, refused: Refused) -> None:
    refused(2, "show", run, says=f"this is a run, not a recipe\n  its own is {run}/recipe.yaml", watch=(run,))


@pytest.mark.parametrize(
    ("key", "value"), [("labels", None), ("training", 5), ("learned", [1]), ("base_model", []), ("pairs", 1)]
)
def test_a_damaged_manifest(key: str, value: object, run: Path, tmp_path: Path, refused: Refused) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    says = f"the run is damaged: manifest.json has {key} {value!r}\n  restore the file, or"
    refused(3, "predict", "run", "--text", "red", says=says)


def test_a_damaged_model(run: Path, tmp_path: Path, refused: Refused) -> None:
    broken = shutil.copytree(run, tmp_path / "run")
    for file in (broken / "model").glob("tokenizer*"):
        file.unlink()
    says = "the model's tokenizer has an empty vocabulary"
    refused(3, "predict", "run", "--text", "red", says=says)
    refused(3, "export", "run", says=says)
    weights = broken / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused(3, "export", "run", says="the weights are broken or cut short")
    assert not (broken / "export").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--set", "model.max_length=16"), 2, "made with another task, model or method:\n  model.max_length"),
        (("--split", "validation"), 3, "there is no validation split\n  splits: train, test"),
        (("--set", "data.test_file=nowhere.csv"), 3, "nowhere.csv: no such file or folder"),
        (("--gate", "macro_f1"), 2, "expected METRIC>=NUMBER or METRIC<=NUMBER\n"),
        (("--gate", "acuracy>=0"), 2, "--gate acuracy: is not computed; did you mean 'accuracy'?"),
    ],
)
def test_eval(options: tuple[str, ...], code: int, says: str, run: Path, refused: Refused) -> None:
    refused(code, "eval", run, *options, says=says, lines=4, watch=(run,))


def test_gates_that_fail(run: Path, refused: Refused) -> None:
    options = ("--gate", "per_label.pink.f1>=0", "--gate", "accuracy>=1.5")
    refused(4, "eval", run, *options, prints=True, says=(
        "gate failed: per_label.pink.f1 was not computed; there is: accuracy, macro_f1, per_label",
        "(min 1.5)",
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "give one of FILE, - or --text"),
        (("rows.csv", "--text", "red"), 2, "give one of FILE, - or --text"),
        (("--text", " "), 3, "text 1: the text is empty"),
        (("nowhere.csv",), 3, "nowhere.csv: no such file or folder"),
        (("rows.csv",), 3, "or 'sentence1' for the field 'text'\n  found: a, b"),
        (("header.csv",), 3, "header.csv: there are no rows to predict for"),
        (("-",), 3, "standard input: there are no rows to predict for"),
    ],
)
def test_predict(
    arguments: tuple[str, ...], code: int, says: str, run: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "header.csv").write_text("text,label\n")
    refused(code, "predict", run, *arguments, says=says, watch=(run,))
