"""Every component that is found keeps the promises of its kind."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from ftkit.catalogue import KINDS
from ftkit.component import attribute_docstrings, discover
from ftkit.data.base import Format
from ftkit.data.source import DataSource
from ftkit.recipe import Recipe
from ftkit.recipe.reading import read_yaml

COMPONENTS = [(kind, name) for kind, base in KINDS.items() for name in discover(base)]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_component(kind: str, name: str) -> None:
    component = discover(KINDS[kind])[name]
    built = component(type=name)
    assert component.summary().endswith("."), "the docstring's first paragraph is a sentence"
    assert len(component.summary()) < 160
    assert component.model_validate(json.loads(built.model_dump_json()), strict=True) == built
    with pytest.raises(ValidationError):
        component.model_validate({"type": name, "no_such_key": 1})
    with pytest.raises(ValidationError):
        built.type = "other"
    described = attribute_docstrings(component)
    for key in component.model_fields.keys() - {"type"}:
        assert described.get(key), f"{name}.{key} has no docstring"


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_component_is_in_a_file_of_its_kind(kind: str, name: str) -> None:
    component = discover(KINDS[kind])[name]
    folder = "data" if kind == "formats" else kind
    assert Path(inspect.getfile(component)).parent.name == folder


@pytest.mark.parametrize("name", discover(Format))
def test_every_format_can_be_asked_for(name: str) -> None:
    assert DataSource(train_file="rows", format=name).format == name


def test_a_recipe_as_readers_write_it() -> None:
    tree, places = read_yaml("training:\n  learning_rate: 2e-5\n  bf16: no\nlabels: [yes, off]\n", "r.yaml")
    assert tree == {"training": {"learning_rate": 2e-5, "bf16": "no"}, "labels": ["yes", "off"]}
    assert places[("training", "learning_rate")] == "r.yaml:2"


def test_the_json_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    for name, definition in schema["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            if key != "type" and name != "Training":
                assert value.get("description"), f"{name}.{key}"
    assert schema["$defs"]["LoRA"]["properties"]["r"]["description"] == "Rank of each adapter."
