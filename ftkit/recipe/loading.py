"""From a path or a name to a checked, complete recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftkit.component import discover
from ftkit.data.source import DataSource
from ftkit.errors import Problem, RecipeError, UsageError
from ftkit.methods.base import Method
from ftkit.metrics.base import Headline, Metric
from ftkit.models.source import PACKAGE_PREFIX, ModelSource
from ftkit.recipe import shipped
from ftkit.recipe.explaining import explain
from ftkit.recipe.merging import Source, merge, read_chain, read_mapping, read_overrides
from ftkit.recipe.reading import KeyPath, dotted, write_yaml
from ftkit.recipe.schema import BLOCK_ORDER, LOSS, Recipe, uncomputed

_MOST_SHOWN = 30


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
        source = read_mapping(recipe, Path.cwd())
        if isinstance(parent := source.tree.get("extends"), str):
            source = merge(read_chain(find_recipe(parent, Path.cwd()), find_recipe), source)
    else:
        source = read_chain(find_recipe(str(recipe), Path.cwd()), find_recipe)
    source = merge(source, read_overrides(overrides, Path.cwd()))
    source.tree.pop("extends", None)
    problems = [*source.problems, *_resolve_paths(source)]
    try:
        checked = Recipe.model_validate(source.tree, strict=True)
    except ValidationError as error:
        said = {(problem.where, problem.key) for problem in problems}
        found = explain(error, source, Recipe)
        problems += [problem for problem in found if (problem.where, problem.key) not in said]
        raise _recipe_error(problems) from None
    if problems := [*problems, *_contradictions(checked, source)]:
        raise _recipe_error(problems)
    return checked


def _recipe_error(problems: Sequence[Problem]) -> RecipeError:
    """The problems in the order of the file."""

    def line(problem: Problem) -> tuple[str, int]:
        name, _, number = problem.where.rpartition(":")
        return (name, int(number)) if number.isdecimal() else (problem.where, 0)

    ordered = sorted(problems, key=line)
    if more := ordered[_MOST_SHOWN:]:
        ordered = [*ordered[:_MOST_SHOWN], Problem("", "", f"and {len(more)} more")]
    return RecipeError(ordered)


def find_recipe(name: str, folder: Path) -> Path:
    """The recipe file of a path (relative to `folder`) or of a shipped recipe's name.

    Raises:
        UsageError: There is neither, with the nearest name.
    """
    path = folder / _expanded(name)
    if path.is_file():
        return path
    if path.suffix not in {".yaml", ".yml"} and (packaged := shipped.find(name)):
        return packaged
    if (path / "manifest.json").is_file() and (path / "recipe.yaml").is_file():
        raise UsageError("this is a run, not a recipe", where=name, hint=f"its own is {name}/recipe.yaml")
    if path.is_dir():
        raise UsageError("this folder is neither a recipe nor a run (no manifest.json)", where=name)
    beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = get_close_matches(name, shipped.names(), n=1) or get_close_matches(path.name, beside, n=1)
    raise UsageError(
        "there is no such file, run folder or shipped recipe"
        + (f"; did you mean {close[0]!r}?" if close else ""),
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
    return write_yaml(to_tree(recipe))


def _resolve_paths(source: Source) -> list[Problem]:
    """Make the paths in the tree absolute, each counted from where it was said; say which are none."""
    problems = []

    def resolve(path: KeyPath, *, must_be_path: bool) -> None:
        block: Any = source.tree
        for step in path[:-1]:
            block = block.get(step) if isinstance(block, dict) else None
        value = block.get(path[-1]) if isinstance(block, dict) else None
        resolved = []
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and (not one.strip() or "\0" in one):
                problems.append(Problem(source.place_of(path), dotted(path), f"{one!r} is not a path"))
            elif isinstance(one, str) and path == ("output_dir",):
                one = str(_expanded(one).absolute())
            elif isinstance(one, str):
                one = _absolute(one, source.folder_of(path), must_be_path=must_be_path)
            resolved.append(one)
        if value is not None:
            block[path[-1]] = resolved if isinstance(value, list) else resolved[0]

    for key in DataSource.path_keys:
        resolve(("data", key), must_be_path=True)
    for key in ModelSource.path_keys:
        resolve(("model", key), must_be_path=False)
    resolve(("data", "dataset_name"), must_be_path=False)
    for kind in discover(Method).values():
        for key in kind.path_keys:
            resolve(("method", key), must_be_path=False)
    resolve(("output_dir",), must_be_path=True)
    gates = source.tree.get("gates")
    for name in gates if isinstance(gates, dict) else ():
        resolve(("gates", name, "baseline"), must_be_path=True)
    return problems


def _absolute(value: str, folder: Path, *, must_be_path: bool) -> str:
    """A path made absolute; a Hub id or a package name is left as it is."""
    if value.startswith(PACKAGE_PREFIX):
        return value
    path = folder / _expanded(value)
    # Where links lead in a circle, whoever opens the path says that there is no such file.
    with suppress(RuntimeError):
        # The Hub's cache links a name to a file that is named for its content: keep a GGUF file's suffix.
        path = path.parent.resolve() / path.name if path.suffix == ".gguf" else path.resolve()
    is_path = must_be_path or value.startswith((".", "~", "/")) or path.exists()
    return str(path) if is_path else value


def _expanded(value: str) -> Path:
    """The path with `~` replaced, where there is such a user (as a shell does it)."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        return Path(value)


def _contradictions(recipe: Recipe, source: Source) -> list[Problem]:
    """What no single block can see: blocks that do not go together."""
    problems = []

    def problem(path: KeyPath, what: str) -> None:
        problems.append(Problem(source.place_of(path), dotted(path), what))

    for field in recipe.data.columns:
        if field not in recipe.task.fields:
            allowed = ", ".join(recipe.task.fields)
            problem(
                ("data", "columns", field),
                f"the task {recipe.task.type} has no such field; it has: {allowed}",
            )
    computed = [metric.name() for metric in recipe.metrics]
    answer = recipe.task.answer
    task = recipe.task
    for key, what in recipe.method.problems(
        task.type, task.asked_by, task.prompt_fields, same=task.same_candidates
    ):
        problem(("method", key), what)
    for number, metric in enumerate(recipe.metrics):
        if answer not in metric.answers:
            fit = ", ".join(name for name, kind in discover(Metric).items() if answer in kind.answers)
            scores = " or ".join(map(_with_article, metric.answers))
            problem(
                ("metrics", number),
                f"{metric.name()} scores {scores}, the task predicts {_with_article(answer)}; "
                f"these fit: {fit}",
            )
        if metric.name() in computed[:number]:
            problem(("metrics", number), f"{metric.name()} stands twice")
    for path in recipe.gates:
        if reason := uncomputed(path, computed):
            problem(("gates", path), reason)
    headlines = [metric.name() for metric in recipe.metrics if isinstance(metric, Headline)]
    best, _ = recipe.best_metric
    if best not in {*headlines, LOSS}:
        problem(
            ("training", "metric_for_best_model"),
            f"{best!r} is not computed; metrics has: {', '.join([*headlines, LOSS])}",
        )
    if recipe.early_stopping and recipe.arguments.get("eval_strategy") == "no":
        problem(("early_stopping",), "waits for validation scores, and training.eval_strategy is no")
    if recipe.model.from_config and recipe.method.type != "full":
        problem(("method",), f"a fresh model is trained whole: method full, not {recipe.method.type}")
    return problems


def _with_article(answer: str) -> str:
    return answer if answer.endswith("s") else f"a {answer}"
