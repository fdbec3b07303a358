"""The verbs as people and scripts use them: what is printed where, and the same through Python."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import yaml

import ftkit as library
from ftkit import finetuning, prediction
from ftkit.data import source
from ftkit.errors import GateError, UsageError
from ftkit.gates import check_gates
from ftkit.metrics.accuracy import Accuracy
from ftkit.metrics.entity_errors import EntityErrors
from ftkit.recipe import load_recipe
from ftkit.recipe.schema import Gate
from ftkit.records import Record
from ftkit.training.estimator import TrainedEstimator

HEAVY = ("torch", "transformers", "evaluate", "peft", "datasets", "sklearn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Any, colours: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    tree = {
        "task": "classification", "model": {"name_or_path": str(tiny("bert"))}, "method": "full",
        "data": {"data_dir": str(colours)}, "engine": {"precision": "fp32"},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 16},
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(tree))
    return library.finetune(tree).folder


def test_finetune_prints_results_on_stdout_and_stages_on_stderr(ftkit: Any, recipe_file: Path) -> None:
    done = ftkit("finetune", recipe_file, "--set", "training.num_train_epochs=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Scores on test (15 rows, fp32)")
    assert "macro_f1" in done.stdout
    stages = ["Reading data", "Loading", "Training: method full", "Evaluating on test", "Next: ftkit predict"]
    assert [line for line in stages if line in done.stderr] == stages
    assert "\033" not in done.stderr + done.stdout, "no colours off a terminal"
    assert "epoch 1.00" in done.stderr


def test_command_and_python_give_the_same_run(
    ftkit: Any, recipe: dict[str, Any], recipe_file: Path, tmp_path: Path
) -> None:
    done = ftkit("finetune", recipe_file, "--json", "--quiet")
    printed = json.loads(done.stdout)
    assert done.stderr == ""
    run = library.finetune(recipe, [f"output_dir={tmp_path / 'python'}"])
    assert printed == {"run": str(tmp_path / "run"), **run.metrics}
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "python")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_run_folder_is_complete_and_its_recipe_runs_again(
    ftkit: Any, finished: Path, tmp_path: Path
) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        "README.md", "log.jsonl", "manifest.json", "metrics.json", "model", "predictions.jsonl", "recipe.yaml"
    }  # fmt: skip
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["labels"] == ["blue", "green", "red"]
    assert manifest["data"]["train"]["rows"] == 45
    assert len(manifest["base_model"]["sha256"]) == 64
    assert json.loads((finished / "model" / "config.json").read_text())["id2label"] == {
        "0": "blue", "1": "green", "2": "red"
    }  # fmt: skip
    again = library.finetune(finished / "recipe.yaml", [f"output_dir={tmp_path / 'again'}"])
    assert again.metrics == json.loads((finished / "metrics.json").read_text())


def test_eval_equals_what_finetune_found(ftkit: Any, finished: Path) -> None:
    by_run = json.loads(ftkit("eval", finished, "--json", "-q").stdout)
    by_recipe = json.loads(ftkit("eval", finished.parent / "recipe.yaml", "--json", "-q").stdout)
    found = json.loads((finished / "metrics.json").read_text())
    assert by_run == by_recipe == {"run": str(finished), **found}


def test_eval_of_another_split_new_data_and_fewer_labels(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    done = json.loads(ftkit("eval", finished, "--split", "validation", "--limit", "6", "--json").stdout)
    assert (done["split"], done["rows"]) == ("validation", 6)
    (tmp_path / "new.csv").write_text("text,label\nthe red one,red\nred and on,red\n")
    done = ftkit("eval", finished, "--set", "data.test_file=new.csv", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 2
    assert json.loads((finished / "metrics.json").read_text())["rows"] == 15, "the run's own scores stay"


@pytest.mark.parametrize("rows", ["text,queue\nthe red one,red\n", "text,label\nthe red one,\n"])
def test_eval_of_data_without_answers_scores_nothing_else(
    rows: str, ftkit: Any, finished: Path, tmp_path: Path
) -> None:
    """A gate on new data would pass by the scores of the validation rows."""
    (tmp_path / "new.csv").write_text(rows)
    done = ftkit("eval", finished, "--set", "data.test_file=new.csv", "--gate", "accuracy>=0")
    assert done.returncode == 3
    assert "new.csv:2: the test split holds no labels, so it cannot be scored" in done.stderr
    assert "data.columns" in done.stderr


def test_ids_come_out_with_predictions(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,nr,text,label\nA-7,12,the red one,red\nA-8,13,a blue one,blue\n")
    answers = ftkit("predict", finished, "new.csv").stdout.splitlines()
    assert [json.loads(line)["id"] for line in answers] == ["A-7", "A-8"]
    answers = ftkit("predict", finished, "new.csv", "--set", "data.id_column=nr").stdout.splitlines()
    assert [json.loads(line)["id"] for line in answers] == ["12", "13"]
    done = ftkit("predict", finished, "-", input='{"id": 3, "text": "red"}\n{"text": "blue"}\n')
    assert [json.loads(line).get("id") for line in done.stdout.splitlines()] == [3, None]
    scored = ftkit("eval", finished, "--set", "data.test_file=new.csv")
    assert scored.returncode == 0, scored.stderr
    (folder,) = [
        one for one in (finished / "eval").iterdir() if "A-7" in (one / "predictions.jsonl").read_text()
    ]
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["A-7", "A-8"]


def test_a_text_file_is_one_text(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the red one\na blue one\n")
    done = ftkit("predict", finished, "new.txt")
    assert len(done.stdout.splitlines()) == 1
    assert "is one text; with --set data.format=lines each of its lines is one" in done.stderr
    done = ftkit("predict", finished, "new.txt", "--set", "data.format=lines")
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.count("one text") == 0


def test_eval_reads_what_it_scores(
    ftkit: Any, finished: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training rows are looked through for the same texts where that is quick, and else not needed."""
    train = tmp_path / "train.csv"
    train.write_bytes((colours / "train.csv").read_bytes())
    (tmp_path / "new.csv").write_text("text,label\n" + train.read_text().splitlines()[1] + "\n")
    files = ("data={train_file: train.csv, test_file: new.csv, validation_fraction: 0.2}",)
    there = ftkit("eval", finished, "--set", *files)
    assert there.returncode == 0, there.stderr
    assert "1 test row is also in the training data" in there.stderr
    train.write_text("text,label\nunread,unheard of\n")
    with monkeypatch.context() as patch:
        patch.setattr(source, "_SMALL_BYTES", 10)
        patch.chdir(tmp_path)
        assert library.evaluate(finished, files).scores.rows == 1
    train.unlink()
    gone = ftkit("eval", finished, "--set", *files)
    assert gone.returncode == 0, gone.stderr
    assert "train" not in gone.stderr
    needed = ftkit("eval", finished, "--set", *files, "--split", "validation")
    assert needed.returncode == 3
    assert "train.csv: no such file or folder" in needed.stderr


def test_a_share_that_is_scored_is_what_was_held_out(
    finished: Path, recipe: dict[str, Any], colours: Path, tmp_path: Path
) -> None:
    """A limit does not make it another one; a further row does: rows that were learned would be scored."""
    train = tmp_path / "train.csv"
    train.write_text((colours / "train.csv").read_text())
    recipe["data"] = {"train_file": str(train), "test_fraction": 0.2}
    run = library.finetune(recipe)
    whole, few = library.evaluate(run), library.evaluate(run, limit=4)
    rows = [(one.folder / "predictions.jsonl").read_text().splitlines() for one in (whole, few)]
    assert (len(rows[0]), len(rows[1])) == (9, 4)
    said = [[(row["text"], row["prediction"]) for row in map(json.loads, one)] for one in rows]
    assert said[1] == said[0][:4]
    other = "not the one that was held out when the run was made"
    with pytest.raises(UsageError, match=other):
        library.evaluate(run, ["data.split_seed=1"])
    with pytest.raises(UsageError, match=other):
        library.evaluate(finished, [f"data={{train_file: {train}, test_fraction: 0.2}}"])
    train.write_text(train.read_text() + "a red one more,red\n")
    with pytest.raises(UsageError, match=other):
        library.evaluate(run, limit=4)
    assert library.evaluate(run, [f"data.test_file={colours / 'test.csv'}"]).scores.rows == 15


@pytest.mark.parametrize(
    ("gate", "code", "said"),
    [
        ("accuracy>=0", 0, "gate passed: accuracy"),
        ("accuracy>=1.1", 4, "gate failed: accuracy"),
        ("per_label.red.recall<=1", 0, "gate passed: per_label.red.recall"),
        ("per_label.red.recall>=1.5", 4, "gate failed: per_label.red.recall"),
    ],
)
def test_gates(gate: str, code: int, said: str, ftkit: Any, finished: Path) -> None:
    done = ftkit("eval", finished, "--gate", gate)
    assert done.returncode == code
    assert said in done.stderr
    assert "Scores on test" in done.stdout, "results are printed before the gate"


def test_a_gate_on_what_is_not_computed_is_refused_before_any_work(
    ftkit: Any, recipe_file: Path, finished: Path
) -> None:
    for verb, target in (("finetune", recipe_file), ("eval", finished)):
        done = ftkit(verb, target, "--gate", "acuracy>=0.1")
        assert done.returncode == 2
        assert (
            "--gate acuracy: is not computed; did you mean 'accuracy'? metrics has: accuracy" in done.stderr
        )
        assert "Reading data" not in done.stderr


def test_a_gate_on_data_of_which_nothing_is_scored_is_refused_before_any_work(
    ftkit: Any, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = json.loads(recipe_file.read_text())
    only = {"train_file": str(Path(recipe["data"]["data_dir"]) / "train.csv")}
    recipe_file.write_text(json.dumps(recipe | {"data": only}))
    done = ftkit("finetune", recipe_file, "--gate", "accuracy>=0.1")
    assert done.returncode == 2
    assert "gates: nothing will be scored: there is no labelled" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "columns", "reason"),
    [
        ("message,kind\nhallo,red\n", {}, "train.csv:2: no column"),
        ("text,label\nhallo,new\n", {}, "the label 'new' is not among the"),
        (None, {"text": "body", "label": "colour"}, "train.csv:2: no column 'body' for the field 'text'"),
    ],
)
def test_new_rows_are_scored_whatever_became_of_the_training_rows(
    train: str | None, columns: dict[str, str], reason: str, ftkit: Any, tmp_path: Path, finished: Path
) -> None:
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    rows = (Path(recipe["data"]["data_dir"]) / "test.csv").read_text()
    for old, new in (("text", "body"), ("label", "colour")) if columns else ():
        rows = rows.replace(old, new, 1)
    (tmp_path / "test.csv").write_text(rows)
    if train:
        (tmp_path / "train.csv").write_text(train)
    first = tmp_path / "train.csv" if train else Path(recipe["data"]["data_dir"]) / "train.csv"
    files = {"train_file": str(first), "test_file": str(tmp_path / "test.csv"), "columns": columns}
    done = ftkit("eval", finished, "--set", f"data={json.dumps(files)}")
    assert done.returncode == 0, done.stderr
    assert "note: whether rows are also in the training data is not known: " in done.stderr
    assert reason in done.stderr
    before = json.loads((finished / "metrics.json").read_text())["metrics"]["accuracy"]["value"]
    assert f"accuracy  {before:.4f}" in done.stdout


def test_gates_on_what_stands_beside_the_metrics(
    tiny: Any, colours: Path, ftkit: Any, tmp_path: Path
) -> None:
    recipe = {
        "task": {"type": "classification", "formulation": "text"},
        "model": {"name_or_path": str(tiny("gpt2"))}, "data": {"train_file": str(colours / "train.csv")},
        "method": {"type": "prompt", "prompt": "label"}, "gates": {"unreadable.rows": {"max": 0}},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = ftkit("eval", tmp_path / "recipe.yaml", "--split", "train", "--gate", "unreadable.rows<=0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("gate passed: unreadable.rows 0.0000") == 2


def test_rows_before_a_broken_one_are_answered(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"red {number}"}) + "\n" for number in range(150)]
    (tmp_path / "rows.jsonl").write_text("".join([*rows[:100], "{broken\n", *rows[100:]]))
    done = ftkit("predict", finished, tmp_path / "rows.jsonl")
    assert done.returncode == 3
    assert "rows.jsonl:101: " in done.stderr
    assert len(done.stdout.splitlines()) == 100


def test_a_gate_against_a_baseline(ftkit: Any, finished: Path) -> None:
    baseline = f"baseline: {finished / 'metrics.json'}"
    done = ftkit("eval", finished, "--set", f"gates={{accuracy: {{{baseline}, max_drop: 0.0}}}}")
    assert done.returncode == 0, done.stderr
    assert "gate passed: accuracy" in done.stderr


@pytest.mark.parametrize(
    ("path", "bound", "passes"),
    [
        ("unreadable.rows", "max_drop: 5", False),
        ("unreadable.rows", "max_drop: 10", True),
        ("entity_errors.missed", "max_drop: 1", False),
        ("accuracy", "max_drop: 0.01", True),
        ("accuracy", "max_drop: 0.009", False),
    ],
)
def test_how_far_a_score_may_fall(path: str, bound: str, passes: bool, tmp_path: Path) -> None:
    """More errors are worse; and 0.9 - 0.89 is not above 0.01."""

    def scores(accuracy: float, errors: int) -> dict[str, Any]:
        details = {"unreadable": {"rows": errors}, "entity_errors": {"missed": errors}}
        return {"metrics": {"accuracy": {"value": accuracy}}, "details": details}

    (tmp_path / "before.json").write_text(json.dumps(scores(0.9, 0)))
    key, _, most = bound.partition(": ")
    gate = Gate.model_validate({"baseline": str(tmp_path / "before.json"), key: float(most)})
    lower = ["entity_errors", "unreadable"]
    assert [m.name() for m in (Accuracy(), EntityErrors()) if not m.greater_is_better] == lower[:1]
    if passes:
        check_gates([(path, gate)], scores(0.89, 10), lower)
    else:
        with pytest.raises(GateError, match=path):
            check_gates([(path, gate)], scores(0.89, 10), lower)


def test_a_mapping_extends_as_a_file_does(recipe_file: Path, tmp_path: Path) -> None:
    child = {"extends": str(recipe_file), "method": {"type": "lora"}, "output_dir": str(tmp_path / "other")}
    found = load_recipe(child)
    assert found.arguments == load_recipe(recipe_file).arguments
    assert found.method.type == "lora"
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(child | {"extends": "nowhere.yaml"})


def test_paths_of_a_mapping_count_from_here(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe_file.parent / "here").mkdir()
    monkeypatch.chdir(recipe_file.parent / "here")
    found = load_recipe(
        {"extends": str(recipe_file), "data": {"train_file": "rows.csv"}, "model": {"name_or_path": "./m"}}
    )
    assert found.data.train_file == str(recipe_file.parent / "here/rows.csv")
    assert found.model.name_or_path == str(recipe_file.parent / "here/m")


@pytest.mark.parametrize("turned", [False, True])
def test_overrides_hold_in_any_order(turned: bool, recipe_file: Path, tmp_path: Path) -> None:
    said = ["data.dataset_config_name=cola", "data.dataset_name=nyu-mll/glue"]
    data = load_recipe(recipe_file, said[::-1] if turned else said).data
    assert (data.dataset_name, data.dataset_config_name, data.data_dir) == ("nyu-mll/glue", "cola", None)


def test_a_run_that_another_process_began_is_not_replaced(recipe: dict[str, Any]) -> None:
    late = library.Run.open(library.load_recipe(recipe | {"seed": 8}))
    first = library.finetune(recipe)
    with pytest.raises(UsageError, match="the run folder is not empty"):
        finetuning.solve(late, resume=False, limit=None, split=None)
    assert library.Run.load(first.folder).recipe.seed == 7


def test_output_that_the_locale_cannot_write(finished: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ftkit",
        "predict",
        str(finished),
        "--text",
        "red ball \N{GRINNING FACE}",
    ]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    assert done.returncode == 0, done.stderr
    assert "red ball \N{GRINNING FACE}" in done.stdout.decode()


def test_a_configuration_is_not_mixed_with_one_of_another_architecture(tmp_path: Path) -> None:
    parent = tmp_path / "parent.yaml"
    parent.write_text(json.dumps({
        "task": {"type": "language_modeling"}, "data": {"train_file": "a.txt"}, "method": "full",
        "model": {"from_config": {"model_type": "gpt2", "n_layer": 3}, "tokenizer": {"type": "character"}},
        "output_dir": "run",
    }))  # fmt: skip
    child: dict[str, Any] = {"extends": str(parent)}
    llama = {"model_type": "llama", "num_hidden_layers": 2}
    found = load_recipe(child | {"model": {"from_config": llama}}).model
    assert found.from_config == llama
    assert found.tokenizer.type == "character"
    wider = load_recipe(child | {"model": {"from_config": {"n_embd": 64}}}).model
    assert wider.from_config == {"model_type": "gpt2", "n_layer": 3, "n_embd": 64}


@pytest.mark.parametrize("verb", ["check", "finetune"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "before.json: the baseline cannot be read: No such file or directory"),
        ("{", "before.json: the baseline cannot be read: Expecting property name"),
        ("[]", "before.json: the baseline holds no accuracy\n  a baseline is the metrics.json of a run"),
    ],
)
def test_a_missing_baseline_is_found_before_training(
    verb: str, content: str | None, says: str, folder: Path, say: Any, refused: Any
) -> None:
    if content is not None:
        (folder / "before.json").write_text(content)
    say("gates: {accuracy: {baseline: before.json, max_drop: 0.01}}")
    refused(3, verb, "recipe.yaml", says=says)


def test_predict_in_all_its_forms(ftkit: Any, finished: Path, colours: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]
    from_file = ftkit("predict", finished, colours / "test.csv")
    lines = [json.loads(line) for line in from_file.stdout.splitlines()]
    assert [line["text"] for line in lines] == texts, "the order of the file"
    assert [line["label"] for line in lines] == [row["prediction"] for row in rows]
    assert lines[0]["scores"] == pytest.approx(rows[0]["scores"], abs=1e-5)
    from_text_lines = ftkit("predict", finished, "-", input="\n".join(texts))
    objects = "\n".join(json.dumps({"text": text}) for text in texts)
    from_json_lines = ftkit("predict", finished, "-", input=objects)
    assert from_text_lines.stdout == from_json_lines.stdout
    assert ftkit("predict", finished, "-", input=f"\ufeff{objects}").stdout == from_json_lines.stdout
    two = ftkit("predict", finished, "-", "--limit", 2, input="\n\n" + "\n".join(texts))
    assert two.stdout.splitlines() == from_json_lines.stdout.splitlines()[:2]
    assert [json.loads(line)["label"] for line in from_text_lines.stdout.splitlines()] == [
        row["prediction"] for row in rows
    ]
    one = ftkit("predict", finished, "--text", texts[0], "--json")
    assert json.loads(one.stdout)["predictions"][0]["label"] == rows[0]["prediction"]
    assert [p.value for p in library.predict(finished, texts)] == [row["prediction"] for row in rows]


def test_predict_reads_a_column_of_another_name(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("message\nthe red one\na green one\n")
    refused = ftkit("predict", finished, "new.csv")
    assert refused.returncode == 3
    assert "or --set data.columns.text=COLUMN" in refused.stderr
    done = ftkit("predict", finished, "new.csv", "--set", "data.columns.text=message")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["the red one", "a green one"]


def test_what_is_cut_is_said_once(ftkit: Any, finished: Path) -> None:
    many = "\n".join(["red " * 2000] * 100)  # more than one part of a stream
    done = ftkit("predict", finished, "-", input=many)
    assert done.stderr.count("a part of some texts is not read: the model takes") == 1, done.stderr
    assert "is not read" not in ftkit("predict", finished, "--text", "red").stderr


def test_python_predicts_with_a_model_that_is_loaded_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = list[Path]()
    load = TrainedEstimator.load

    def counted(self: TrainedEstimator, folder: Path) -> None:
        loads.append(folder)
        load(self, folder)

    monkeypatch.setattr(TrainedEstimator, "load", counted)
    run = library.Run.load(finished)
    texts = ["the red one", "a green one"]
    alone = [one for text in texts for one in library.predict(run, [text])]
    for one, together in zip(alone, library.predict(run, texts), strict=True):
        assert one.value == together.value
        assert one.scores == pytest.approx(together.scores, abs=1e-6)
    assert loads == [finished / "model"]
    assert library.evaluate(run).metrics == run.metrics
    (finished.parent / "rows.csv").write_text("text,label\na red one,red\n")
    with monkeypatch.context() as patch:
        patch.chdir(finished.parent)
        few = library.Run.load(finished, ["data={train_file: rows.csv, test_file: rows.csv}"])
    assert library.evaluate(few).scores.rows == library.evaluate(few, ["metrics=[accuracy]"]).scores.rows == 1
    with pytest.raises(UsageError, match="another task, model or method"):
        library.evaluate(few, ["method=lora"])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([("a", "b"), "hello"], "text 2: is no pair, as others are"),
        (["hello", ("a", "b")], "text 1: is no pair, as others are"),
        ([("a", "b"), ("a",)], "text 2: is no pair, as others are"),
        ([("a", "b")], "text 1: the run was trained on single texts"),
    ],
)
def test_single_texts_beside_pairs_are_refused(texts: Any, says: str, finished: Path) -> None:
    with pytest.raises(UsageError) as caught:
        library.predict(finished, texts)
    assert str(caught.value).startswith(says)


def test_predict_answers_a_pipe_before_it_ends(finished: Path) -> None:
    """The first lines are answered while the last ones are not written yet; all come out in order."""
    command = [sys.executable, "-m", "ftkit", "predict", str(finished), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # A command that waits for the end of its input would wait for ever.
        watch = Timer(240, process.kill)
        watch.start()
        process.stdin.writelines(f"red {number}\n" for number in range(64))
        process.stdin.flush()
        first = process.stdout.readline()
        assert first, "nothing came out before the pipe was closed"
        process.stdin.write("red 64\n")
        process.stdin.close()
        lines = [first, *process.stdout]
        watch.cancel()
    assert process.returncode == 0
    assert [json.loads(line)["text"] for line in lines] == [f"red {number}" for number in range(65)]


def test_a_closed_pipe_ends_predict_quietly(finished: Path) -> None:
    command = [sys.executable, "-m", "ftkit", "predict", str(finished), "-", "--quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate("red 1\nred 2\n", timeout=240)
    assert (process.returncode, said) == (141, "")


def test_predict_holds_few_rows_at_a_time(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "_LARGEST_PART", 128)
    run = library.Run.load(finished)
    most = 0

    def lines() -> Iterator[bytes]:
        nonlocal most
        for number in range(1000):
            if number % 100 == 0:
                most = max(most, sum(type(one) is Record for one in gc.get_objects()))
            yield f"red {number}\n".encode()

    before = sum(type(one) is Record for one in gc.get_objects())
    stream = prediction.predict_stream(run, prediction.records_of_lines(run, lines()))
    answered = [(record.text, answer.value) for record, answer in stream]
    assert [text for text, _ in answered] == [f"red {number}" for number in range(1000)]
    assert most - before <= 2 * 128
    texts = [text for text, _ in answered[:200]]
    assert [answer.value for answer in library.predict(run, texts)] == [value for _, value in answered[:200]]


def test_predict_knows_whether_a_run_takes_pairs(ftkit: Any, finished: Path) -> None:
    done = ftkit("predict", finished, "--text", "a", "--text-pair", "b")
    assert done.returncode == 2
    assert "the run was trained on single texts" in done.stderr


def test_export_of_a_full_run_is_its_model(ftkit: Any, finished: Path, tmp_path: Path) -> None:
    done = ftkit("export", finished, "--output", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()
    again = ftkit("export", finished, "--output", tmp_path / "plain")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_extends_and_set_come_in_the_documented_order(ftkit: Any, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text(
        "extends: recipe.yaml\nmethod: {type: lora, r: 4}\ntraining: {learning_rate: 2e-4}\n"
    )
    done = ftkit("show", "child.yaml", "--set", "training.num_train_epochs=9", "--json")
    shown = json.loads(done.stdout)
    assert shown["method"]["r"] == 4
    assert shown["training"] == {
        "learning_rate": 2e-4, "num_train_epochs": 9.0, "per_device_train_batch_size": 8
    }  # fmt: skip


def test_early_stopping_stops(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"early_stopping": {"patience": 1, "threshold": 0.9}}
    run = library.finetune(recipe, ["training.num_train_epochs=6", "training.learning_rate=1e-6"])
    assert run.manifest["training"]["steps"] == 2 * 6, "two epochs of six steps"


@pytest.mark.parametrize(("threshold", "epochs"), [(0.0, 4), (10.0, 2)])
def test_early_stopping_asks_for_more_than_its_threshold(
    threshold: float, epochs: int, recipe: dict[str, Any]
) -> None:
    """The loss falls in every epoch, and never by 10."""
    recipe |= {"early_stopping": {"patience": 1, "threshold": threshold}}
    slow = [
        "training.num_train_epochs=4",
        "training.learning_rate=5e-4",
        "training.metric_for_best_model=loss",
    ]
    run = library.finetune(recipe, [*slow, "training.lr_scheduler_type=constant"])
    assert run.manifest["training"]["steps"] == epochs * 6


@pytest.mark.parametrize("command", ["--help", "check", "list", "show"])
def test_light_verbs_import_nothing_heavy(command: str, recipe_file: Path) -> None:
    weights = Path(yaml.safe_load(recipe_file.read_text())["model"]["name_or_path"]) / "model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    arguments = {
        "--help": ["--help"],
        "check": ["check", str(recipe_file), "--set", f"model.sha256={sha256}"],
        "list": ["list", "metrics"],
        "show": ["show", str(recipe_file)],
    }[command]
    code = (
        "import sys; from ftkit.cli import main\n"
        f"sys.argv = ['ftkit', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print([name for name in {[*HEAVY, 'numpy']!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("command", "seconds"), [("--help", 0.35), ("check", 1.0)])
def test_help_and_check_are_quick(command: str, seconds: float, recipe_file: Path) -> None:
    """CPU time of the best of up to fifteen runs, measured beside an import that takes 0.2 s on a quiet
    machine: on one that other work slows down, the bound is as many times longer.
    """
    arguments = [command, str(recipe_file)] if command == "check" else [command]
    times, imports = [], []
    while len(times) < 15 and min(times, default=seconds) >= seconds:
        imports.append(cpu_seconds("-c", "import typer.rich_utils, rich.markdown"))
        times.append(cpu_seconds("-m", "ftkit", *arguments))
    assert min(times) < seconds * max(1.0, min(imports) / 0.2)


def cpu_seconds(*arguments: str) -> float:
    """CPU time of a Python process."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def test_generated_reference_is_up_to_date() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "docs" / "generate.py", "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_eval_of_a_hub_recipe_on_a_local_file(ftkit: Any, recipe_file: Path, tmp_path: Path) -> None:
    """A file given on top takes the place of the data set below, fractions and splits included."""
    tree = json.loads(recipe_file.read_text())
    tree["data"] = {"dataset_name": "org/set", "validation_fraction": 0.1, "columns": {"label": "label"}}
    recipe_file.write_text(json.dumps(tree))
    shown = json.loads(
        ftkit(
            "show",
            recipe_file,
            "--set",
            "data.train_file=a.csv",
            "--set",
            "data.validation_file=b.csv",
            "--json",
        ).stdout
    )
    assert shown["data"]["train_file"] == str(tmp_path / "a.csv")
    assert shown["data"].keys().isdisjoint({"dataset_name", "validation_fraction"})


def test_a_fresh_model_takes_the_place_of_a_pretrained_one(ftkit: Any, tmp_path: Path) -> None:
    """And the other way round: a recipe on top need not undo what the one below says."""
    fresh = {"from_config": {"model_type": "gpt2", "n_layer": 2}, "tokenizer": {"type": "bpe"}}
    pretrained = {"name_or_path": "org/model", "revision": "v1", "sha256": "0" * 64}
    for below, top in ((fresh, {"name_or_path": "org/model"}), (pretrained, fresh)):
        tree = {
            "task": "language_modeling",
            "data": {"train_file": "a.txt"},
            "method": "full",
            "model": below,
        }
        (tmp_path / "below.yaml").write_text(json.dumps(tree | {"output_dir": "run"}))
        (tmp_path / "top.yaml").write_text(json.dumps({"extends": "./below.yaml", "model": top}))
        done = ftkit("show", "top.yaml", "--json")
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)["model"]
        assert {key: value for key, value in shown.items() if key in {**fresh, **pretrained}} == {
            **top,
            **({"tokenizer": {"type": "bpe", "vocab_size": 8000}} if top is fresh else {}),
        }


def test_a_threshold_can_be_chosen_after_training(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": f"a {one} thing {n}", "label": [one]} for n in range(6) for one in ("red", "blue")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe |= {
        "task": {"type": "classification", "multi_label": True},
        "data": dict.fromkeys(("train_file", "test_file"), str(tmp_path / "rows.jsonl")),
        "metrics": ["micro_f1"],
        "training": {"max_steps": 1},
    }
    run = library.finetune(recipe)
    for threshold, labels in ((0.001, ["blue", "red"]), (0.999, [])):
        folder = library.evaluate(run, [f"task.threshold={threshold}"]).folder
        said = [
            json.loads(row)["prediction"] for row in (folder / "predictions.jsonl").read_text().splitlines()
        ]
        assert said == [labels] * len(rows)
    with pytest.raises(UsageError, match="was made with another task"):
        library.evaluate(run, ["task.multi_label=false"])


def test_what_is_no_list_of_texts_is_refused(finished: Path) -> None:
    for texts, says in [
        ("red", "texts are a list"),
        ({"text": "red"}, "texts are a list"),
        ([{"a": "red", "b": "blue"}], "text 1: is neither a text nor a pair"),
        ([None], "text 1: is neither a text nor a pair"),
    ]:
        with pytest.raises(UsageError, match=says):
            library.predict(finished, texts)  # type: ignore[arg-type]
    assert len(library.predict(finished, (text for text in ("red", "blue")))) == 2


# A shell that starts tests in the background has them ignore the signal.
HEEDING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("ftkit", run_name="__main__")
"""


def test_an_interruption_says_how_to_go_on(recipe_file: Path, tmp_path: Path) -> None:
    arguments = ["finetune", "recipe.yaml", "--set", "training.num_train_epochs=10000"]
    command = [sys.executable, "-c", HEEDING, *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == (
        "interrupted; a fine-tuning goes on where it was with: ftkit finetune RECIPE --resume"
    )
