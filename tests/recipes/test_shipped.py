"""Every shipped recipe: it loads, it says what it is, and it runs end to end without the Hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from standins import STANDINS

import ftkit
from ftkit.metrics.base import Headline
from ftkit.recipe import shipped

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))

# The architecture to stand in for each model, and what the recipes' names call it.
MODELS = {
    "google-bert/bert-base-uncased": "bert",
    "distilbert/distilbert-base-uncased": "distilbert",
    "FacebookAI/roberta-base": "roberta",
}
DATA = {
    "stanfordnlp/sst2": "sst2",
    "fancyzhx/ag_news": "ag_news",
    "legacy-datasets/banking77": "banking77",
    "google-research-datasets/go_emotions": "go_emotions",
    "nyu-mll/glue": None,  # called by its configuration
}


def test_there_are_recipes_and_ftkit_finds_the_same() -> None:
    assert NAMES
    assert list(shipped.names()) == NAMES


def test_no_stand_in_is_left_over() -> None:
    recipes = [ftkit.load_recipe(name) for name in NAMES]
    assert {recipe.data.dataset_name for recipe in recipes} == STANDINS.keys() == DATA.keys()
    assert {recipe.model.name_or_path for recipe in recipes} == MODELS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_its_model_and_data_have_a_stand_in(name: str) -> None:
    recipe = ftkit.load_recipe(name)
    assert recipe.model.name_or_path in MODELS, "add the model to MODELS above"
    assert recipe.data.dataset_name in STANDINS, "add the data set to standins.py"


@pytest.mark.parametrize("name", NAMES)
def test_its_name_says_what_it_is(name: str) -> None:
    recipe = ftkit.load_recipe(name)
    data = DATA[recipe.data.dataset_name] or recipe.data.dataset_config_name
    stem = f"{MODELS[recipe.model.name_or_path]}_{recipe.method.type}_{data}"
    assert name == f"{recipe.task.type}/{stem}"
    assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["output_dir"] == f"runs/{stem}"


@pytest.mark.parametrize("name", NAMES)
def test_its_header_is_a_sentence_and_its_command(name: str) -> None:
    first, second, *_ = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,105}\.", first)
    assert first == f"# {shipped.summary(name)}"
    assert second == f"#   ftkit finetune {name}"


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_end_to_end(
    name: str, tiny: Callable[[str], Path], standin: Callable[[str], Path], tmp_path: Path
) -> None:
    shipped_recipe = ftkit.load_recipe(name)
    data = STANDINS[shipped_recipe.data.dataset_name]
    architecture = MODELS[shipped_recipe.model.name_or_path]
    run = ftkit.finetune(
        name,
        [
            f"model.name_or_path={tiny(architecture)}",
            "model.max_length=32",
            f"data.dataset_name={standin(shipped_recipe.data.dataset_name)}",
            "training.max_steps=2",
            "training.per_device_train_batch_size=4",
            f"output_dir={tmp_path / 'run'}",
        ],
    )

    assert run.finished
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["labels"] == list(data.labels)
    assert {split: part["rows"] for split, part in manifest["data"].items()} == data.sizes
    hidden = data.scored != "test" and "test" in data.sizes
    assert manifest["notes"] == (
        ["the test rows have no labels: nothing is scored on them"] if hidden else []
    )

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["split"] == data.scored
    assert metrics["rows"] == data.sizes[data.scored]
    headlines = [metric.name() for metric in shipped_recipe.metrics if isinstance(metric, Headline)]
    assert list(metrics["metrics"]) == headlines
    assert all(math.isfinite(score["value"]) for score in metrics["metrics"].values())

    # The label names go along with the model: in its configuration, or beside the adapters.
    adapters = shipped_recipe.method.adapters
    model = json.loads(
        (tmp_path / "run" / "model" / ("head.json" if adapters else "config.json")).read_text()
    )
    assert [model["id2label"][str(number)] for number in range(len(data.labels))] == list(data.labels)
    several = shipped_recipe.task.multi_label
    assert model["problem_type"] == ("multi" if several else "single") + "_label_classification"
    if not adapters:
        assert model["model_type"] == architecture
