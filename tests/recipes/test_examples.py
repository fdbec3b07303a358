"""The example data: it loads, its splits share nothing, and there is enough of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import ftkit
from ftkit.dataset import load_records

FOLDER = Path(__file__).resolve().parents[2] / "examples"
LABELS = {
    "support_intents": 8,
    "product_reviews": 4,
}


def test_every_example_is_listed() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/recipe.yaml")} == LABELS.keys()


@pytest.mark.parametrize("name", LABELS)
def test_the_data_of_an_example(name: str) -> None:
    recipe = ftkit.load_recipe(FOLDER / name / "recipe.yaml")
    dataset = load_records(recipe.data, recipe.task)
    assert len(dataset.labels) == LABELS[name]
    assert sum(map(len, dataset.splits.values())) >= 300
    texts = {split: {r.text.casefold() for r in records} for split, records in dataset.splits.items()}
    for split, records in dataset.splits.items():
        assert len(texts[split]) == len(records), "no text stands twice"
    for one, other in itertools.combinations(texts.values(), 2):
        assert not one & other
    assert not [note for note in dataset.notes if "hold no entity" not in note]
