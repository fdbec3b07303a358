"""The example data and recipes: they load, splits share nothing, and there is enough of it."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ftkit
from ftkit.dataset import load_records
from ftkit.preflight import check

FOLDER = Path(__file__).resolve().parents[2] / "examples"
LABELS = {
    "support_intents": 8,
    "product_reviews": 4,
}
# Rows of each split, where the answer is a text.
WRITTEN = {
    "data_to_text": {"train": 98, "validation": 14, "test": 28},
    "instructions": {"train": 68, "validation": 12, "test": 25},
    "summaries": {"train": 50, "validation": 10, "test": 20},
}
PACKAGED = re.compile(r"package:(\w+)/")


def test_every_example_is_listed() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/recipe.yaml")} == LABELS.keys() | WRITTEN.keys()


@pytest.mark.parametrize("name", LABELS)
def test_the_data_of_an_example(name: str) -> None:
    dataset = the_data_of(name)
    assert len(dataset.labels) == LABELS[name]
    assert sum(map(len, dataset.splits.values())) >= 300


@pytest.mark.parametrize("name", WRITTEN)
def test_the_data_of_an_example_with_texts(name: str) -> None:
    dataset = the_data_of(name)
    assert not dataset.labels
    assert {split: len(records) for split, records in dataset.splits.items()} == WRITTEN[name]
    others = {split: {len(r.target.others) for r in records} for split, records in dataset.splits.items()}
    assert others == {"train": {0}, "validation": {0}, "test": {1, 2} if name == "data_to_text" else {0}}


def the_data_of(name: str) -> ftkit.records.Dataset:
    """The records of an example; no text is in there twice, and ftkit has nothing to say of them."""
    recipe = ftkit.load_recipe(FOLDER / name / "recipe.yaml")
    dataset = load_records(recipe.data, recipe.task)
    texts = {split: {r.text.casefold() for r in records} for split, records in dataset.splits.items()}
    for split, records in dataset.splits.items():
        assert len(texts[split]) == len(records), "no text stands twice"
    for one, other in itertools.combinations(texts.values(), 2):
        assert not one & other
    assert not [note for note in dataset.notes if "hold no entity" not in note]
    return dataset


def test_in_records_the_column_called_text_is_the_answer() -> None:
    first = the_data_of("data_to_text")["train"][0]
    row = json.loads((FOLDER / "data_to_text" / "train.jsonl").read_text().splitlines()[0])
    assert (first.text, first.target.text) == (row["data"], row["text"])


@pytest.mark.parametrize("name", [*LABELS, *WRITTEN])
def test_its_header_is_a_sentence_and_its_command(name: str) -> None:
    path = FOLDER / name / "recipe.yaml"
    first, second, *_ = path.read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,105}\.", first)
    assert second == f"#   ftkit finetune examples/{name}/recipe.yaml"
    assert ftkit.load_recipe(path).output_dir.endswith(f"runs/{name.replace('_', '-')}")


@pytest.mark.parametrize("name", [*LABELS, *WRITTEN])
def test_it_checks_with_the_weights_that_it_names(name: str) -> None:
    """`ftkit check` finds the package, and looks at the SHA-256 of the weights in it."""
    path = FOLDER / name / "recipe.yaml"
    model = ftkit.load_recipe(path).model
    package = PACKAGED.match(model.name_or_path)
    assert package, "the weights of an example come in a Python package"
    assert re.fullmatch("[0-9a-f]{64}", model.sha256)
    if importlib.util.find_spec(package[1]) is None:
        pytest.skip(f"the package {package[1]} is not installed")
    report = check(path)
    assert report["recipe"] == "ok"
    assert report["model"].endswith("(decoder)" if name in WRITTEN else "(encoder)")


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_with_texts_runs_with_a_tiny_model(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    ftkit.finetune(
        FOLDER / name / "recipe.yaml",
        [
            f"model.name_or_path={tiny('llama')}",
            "model.sha256=null",
            # Its tokenizer knows no words, only letters: in some rows the answer alone does not fit.
            "model.max_length=250",
            "training.max_steps=1",
            "generation.max_new_tokens=4",
            f"output_dir={tmp_path / 'run'}",
        ],
        limit=6,
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["split"], metrics["rows"]) == ("test", 6)
    assert len(metrics["metrics"]) >= 3
    assert all(math.isfinite(score["value"]) for score in metrics["metrics"].values())


PROMPTS = {"gpt2": "gpt2", "llama": "llama", "qwen": "qwen2", "t5": "t5", "bert": "bert"}
"""The architecture of each recipe that prompts a model of the Hub."""


@pytest.mark.parametrize("name", PROMPTS)
def test_the_messages_are_prompted_with_a_tiny_model(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    path = FOLDER / "support_intents" / f"prompt_{name}.yaml"
    first, second, *_ = path.read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,105}\.", first)
    assert second == f"#   ftkit eval examples/support_intents/{path.name}"
    labels = the_data_of("support_intents").labels
    words = ftkit.load_recipe(path).method.verbalizer
    assert not words or words.keys() == set(labels)
    model = tmp_path / "base"
    shutil.copytree(whole(PROMPTS[name]), model)
    if name == "qwen":
        (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    overrides = [f"model.name_or_path={model}", "model.max_length=250", f"output_dir={tmp_path / 'run'}"]
    if name == "bert":
        # Tiny tokenizers know no words, only letters; this one's model has few positions, and each label is
        # to be one token.
        overrides += ["model.max_length=64", f"data.data_dir={beginnings(path.parent, tmp_path / 'data')}"]
        overrides += [f"data.{split}_file=null" for split in ("train", "validation", "test")]
        letters = dict(zip(labels, "abcdefgh", strict=True))
        overrides += [f"method.verbalizer={json.dumps(letters)}"]
    evaluation = ftkit.evaluate(path, overrides, limit=6)
    assert (evaluation.metrics["split"], evaluation.metrics["rows"]) == ("test", 6)
    assert math.isfinite(evaluation.metrics["metrics"]["accuracy"]["value"])


def beginnings(source: Path, folder: Path) -> Path:
    """The files of an example with the first letters of their texts alone."""
    folder.mkdir()
    for path in source.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{**row, "text": row["text"][:16]} for row in csv.DictReader(file)]
        with (folder / path.name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder
