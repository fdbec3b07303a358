"""Check a recipe, its data and its model, without loading any of the heavy libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.dataset import load_records
from ftkit.errors import InputError, UsageError
from ftkit.estimator import family_of
from ftkit.finetuning import refuse_nothing_to_score, validation_of
from ftkit.gates import refuse_missing_baselines
from ftkit.recipe import Recipe, load_recipe
from ftkit.training.positions import longest_prompt, positions_of

_MOST_ROWS = 20_000


def check(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What can be known before anything is loaded.

    Local files are read (the first 20,000 rows of each; the training file whole where a share of it is held
    out, or shots come from it), a local model is located; a data set or a model on the Hub is only named,
    since looking at it means downloading it.

    Raises:
        UsageError: The recipe is wrong, or its parts do not go together.
        InputError: Data or model are not as the recipe needs them.
    """
    checked = load_recipe(recipe, overrides)
    report: dict[str, Any] = {"recipe": "ok", "task": checked.task.type, "method": checked.method.type}
    refuse_missing_baselines(checked.gates)
    located = checked.model.locate()
    if located.config:
        family = family_of(checked, dict(located.config))
        _refuse_short_model(checked, family.name(), located.config)
        report["model"] = f"{located.name_or_path} ({family.name()})"
    else:
        report["model"] = f"{checked.model.name} (on the Hub, not looked at)"
    if name := checked.data.dataset_name:
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise InputError("no such folder", where=f"data.dataset_name: {name}")
        kind = "a local folder in Hub layout" if Path(name).is_absolute() else "a data set on the Hub"
        report["data"] = f"{name} ({kind}, not looked at)"
        return report
    dataset = load_records(checked.data, checked.task, limit=_MOST_ROWS, trains=checked.method.trains)
    validation_of(dataset, checked)
    if checked.method.trains and checked.gates:
        refuse_nothing_to_score(dataset, None)
    for split, records in dataset.splits.items():
        least = "at least " if len(records) == _MOST_ROWS else ""
        report[split] = f"{least}{len(records):,} rows"
    if dataset.labels:
        report["labels"] = ", ".join(dataset.labels[:12]) + (", ..." if len(dataset.labels) > 12 else "")
    for number, note in enumerate(dataset.notes, 1):
        report[f"note {number}"] = note
    return report


def _refuse_short_model(recipe: Recipe, family: str, config: Mapping[str, Any]) -> None:
    """A local model's configuration tells how long its inputs can be."""
    positions, asked = positions_of(config), recipe.model.max_length
    if positions and asked and positions < asked:
        raise UsageError(f"model.max_length is {asked}, the model has {positions} positions")
    if recipe.task.writes:
        longest_prompt(config, recipe.generation.max_new_tokens, apart=family == "encoder_decoder")
