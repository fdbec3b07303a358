"""From a path or a name to a checked, complete recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ftkit.data.source import DataSource
from ftkit.errors import Problem, RecipeError, UsageError
from ftkit.metrics.base import Headline
from ftkit.models.source import PACKAGE_PREFIX, ModelSource
from ftkit.recipe import shipped
from ftkit.recipe.explaining import explain
from ftkit.recipe.merging import Source, merge, read_chain, read_overrides
from ftkit.recipe.schema import BLOCK_ORDER, LOSS, Recipe


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge, check and resolve a recipe.

    Args:
        recipe: A path, the name of a shipped recipe (`classification/bert_full_sst2`), or the
            tree itself.
        overrides: `key.path=value` strings, as after `--set`; they win over the file.

    Returns:
        The complete recipe, with absolute paths.

    Raises:
        RecipeError: Everything that is wrong with it, each with its place.
        UsageError: It cannot be found or read.

    """
    if isinstance(recipe, Mapping):
        source = Source(dict(recipe), {}, {(): Path.cwd()})
    else:
        source = read_chain(find_recipe(str(recipe), Path.cwd()), find_recipe)
    source = merge(source, read_overrides(overrides, Path.cwd()))
    source.tree.pop("extends", None)
    _resolve_paths(source)
    try:
        checked = Recipe.model_validate(source.tree, strict=True)
    except ValidationError as error:
        raise RecipeError(explain(error, source, Recipe)) from None
    if problems := _contradictions(checked, source):
        raise RecipeError(problems)
    return checked


def find_recipe(name: str, folder: Path) -> Path:
    """The recipe file of a path (relative to `folder`) or of a shipped recipe's name.

    Raises:
        UsageError: There is neither, with the nearest name.

    """
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix not in {".yaml", ".yml"} and (packaged := shipped.find(name)):
        return packaged
    if path.is_dir():
        raise UsageError("this is a folder, not a recipe", where=name)
    close = get_close_matches(name, list(shipped.names()), n=1)
    raise UsageError(
        "no such recipe" + (f"; did you mean {close[0]!r}?" if close else ""),
        where=name,
        hint="`ftkit list recipes` shows those that ship with ftkit",
    )


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """The complete recipe as plain values, blocks in their usual order."""
    tree = recipe.model_dump(exclude={"training"}, exclude_none=True)
    tree["training"] = recipe.arguments
    return {key: tree[key] for key in BLOCK_ORDER if key in tree}


def to_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, allow_unicode=True, width=100)


def _resolve_paths(source: Source) -> None:
    """Make the paths in the tree absolute: each counts from where it was said."""
    for block, kind in (("data", DataSource), ("model", ModelSource)):
        values = source.tree.get(block)
        if not isinstance(values, dict):
            continue
        values = source.tree[block] = dict(values)
        for key in kind.path_keys:
            folder = source.folder_of((block, key))
            if isinstance(values.get(key), str):
                values[key] = _absolute(values[key], folder, must_be_path=block == "data")
            elif isinstance(values.get(key), list):
                values[key] = [
                    _absolute(v, folder, must_be_path=True) if isinstance(v, str) else v for v in values[key]
                ]
        if block == "data" and isinstance(values.get("dataset_name"), str):
            folder = source.folder_of((block, "dataset_name"))
            values["dataset_name"] = _absolute(values["dataset_name"], folder, must_be_path=False)
    if isinstance(output := source.tree.get("output_dir"), str):
        source.tree["output_dir"] = str(Path(output).expanduser().absolute())
    gates = source.tree.get("gates")
    for name, gate in gates.items() if isinstance(gates, dict) else ():
        if isinstance(gate, dict) and isinstance(gate.get("baseline"), str):
            folder = source.folder_of(("gates", name, "baseline"))
            gate["baseline"] = _absolute(gate["baseline"], folder, must_be_path=True)


def _absolute(value: str, folder: Path, *, must_be_path: bool) -> str:
    """A path made absolute; a Hub id or a package name is left as it is."""
    if value.startswith(PACKAGE_PREFIX):
        return value
    path = (folder / Path(value).expanduser()).resolve()
    is_path = must_be_path or value.startswith((".", "~", "/")) or path.exists()
    return str(path) if is_path else value


def _contradictions(recipe: Recipe, source: Source) -> list[Problem]:
    """What no single block can see: blocks that do not go together."""
    problems = []

    def problem(path: tuple[str, ...], what: str) -> None:
        place = next(
            (source.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in source.places), ""
        )
        problems.append(Problem(place, ".".join(path), what))

    for field in recipe.data.columns:
        if field not in recipe.task.fields:
            allowed = ", ".join(recipe.task.fields)
            problem(
                ("data", "columns", field),
                f"the task {recipe.task.type} has no such field; it has: {allowed}",
            )
    for metric in recipe.metrics:
        if recipe.task.answer not in metric.answers:
            fit = f"it scores a {' or a '.join(metric.answers)}, the task predicts a {recipe.task.answer}"
            problem(("metrics",), f"{metric.name()} does not fit: {fit}")
    names = [metric.name() for metric in recipe.metrics if isinstance(metric, Headline)]
    best, _ = recipe.best_metric
    if best not in {*names, LOSS}:
        problem(
            ("training", "metric_for_best_model"),
            f"{best!r} is not computed; metrics has: {', '.join([*names, LOSS])}",
        )
    if not recipe.method.trains and recipe.arguments:
        problem(("training",), f"method {recipe.method.type} does not train")
    return problems
