"""One tree out of several: parents named by `extends`, the recipe, and `--set`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, UsageError
from ftkit.recipe.reading import KeyPath, Places, read_file, read_value


@dataclass(frozen=True)
class Source:
    """A recipe's tree before it is checked.

    Attributes:
        tree: Nested keys and values.
        places: Where each key was said, for messages.
        folders: The folder that a relative path under each key counts from.
        problems: What was wrong with the files that the tree was read from.
    """

    tree: dict[str, Any]
    places: Places = field(default_factory=dict)
    folders: dict[KeyPath, Path] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def folder_of(self, path: KeyPath) -> Path:
        """The folder that the value at `path` resolves against."""
        while path not in self.folders and path:
            path = path[:-1]
        return self.folders.get(path, Path())

    def place_of(self, path: KeyPath) -> str:
        """Where the key at `path`, or the nearest block around it, was said."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, "")


def read_chain(path: Path, find: Callable[[str, Path], Path], seen: tuple[Path, ...] = ()) -> Source:
    """Read a recipe with the parents it `extends`, the nearest winning.

    Args:
        path: The recipe file.
        find: Turns the text of `extends` and the folder it was said in into a path.
        seen: The recipes on the way here.

    Raises:
        UsageError: A parent is missing, or the chain comes back to itself.
    """
    path = path.resolve()
    tree, places, problems = read_file(path)
    own = Source(tree, places, dict.fromkeys(_leaves(tree), path.parent), tuple(problems))
    parent = tree.pop("extends", None)
    if parent is None:
        return own
    where = places[("extends",)]
    if not isinstance(parent, str):
        raise UsageError("extends: one path or recipe name is needed", where=where)
    try:
        found = find(parent, path.parent).resolve()
    except UsageError as error:
        raise UsageError(f"extends: {parent}: {error.what}", where=where, hint=error.hint) from None
    seen = (*seen, path)
    if found in seen:
        chain = " -> ".join(recipe.name for recipe in (*seen, found))
        raise UsageError(f"extends: the chain comes back to itself: {chain}", where=where)
    return merge(read_chain(found, find, seen), own)


def read_overrides(overrides: Sequence[str], folder: Path) -> Source:
    """Turn `key.path=value` strings into a source; relative paths count from `folder`.

    >>> read_overrides(["training.learning_rate=2e-5"], Path()).tree
    {'training': {'learning_rate': 2e-05}}
    """
    source = Source({})
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(
                f"--set {override!r}: expected key=value",
                hint="for example --set training.learning_rate=1e-4",
            )
        if keys[0] == "extends":
            raise UsageError(f"--set {override}: a parent is named in the recipe's file, not here")
        value = read_value(text)
        tree: dict[str, Any] = {keys[-1]: value}
        for name in reversed(keys[:-1]):
            tree = {name: tree}
        place = f"--set {override}"
        paths = list(_leaves(tree))
        said = Source(tree, dict.fromkeys(paths, place), dict.fromkeys(paths, folder))
        # None makes another void: they are of one level, in any order.
        source = merge(source, said, voids=False)
    return source


def read_mapping(recipe: Mapping[str, Any], folder: Path) -> Source:
    """A recipe that is a tree already; relative paths count from `folder`."""
    tree = deepcopy(dict(recipe))
    return Source(tree, {}, dict.fromkeys(_leaves(tree), folder))


def merge(base: Source, top: Source, *, voids: bool = True) -> Source:
    """Lay one source over another: mappings key by key, everything else replaced.

    A component of another `type` replaces the whole block: the options of `lora` mean
    nothing to `prompt`.

    Args:
        base: The source below.
        top: The one that wins.
        voids: Whether another origin of the data or the model on top removes what is said of the one below.
    """
    replaced: set[KeyPath] = set()
    tree = _merge(base.tree, top.tree, (), replaced, voids=voids)

    def kept(path: KeyPath) -> bool:
        return not any(path[: len(gone)] == gone for gone in replaced)

    places = {path: place for path, place in base.places.items() if kept(path)} | top.places
    folders = {path: folder for path, folder in base.folders.items() if kept(path)} | top.folders
    return Source(tree, places, folders, (*base.problems, *top.problems))


def _merge(
    base: dict[str, Any], top: dict[str, Any], path: KeyPath, replaced: set[KeyPath], *, voids: bool
) -> dict[str, Any]:
    merged = dict(base)
    if voids and path in _VOIDS:
        for key in _VOIDS[path](base, top) & merged.keys():
            del merged[key]
            replaced.add((*path, key))
    for key, value in top.items():
        old, here = base.get(key), (*path, key)
        if here in {("task",), ("method",)}:
            # A component's bare name is its block without options.
            old, value = (({"type": v} if isinstance(v, str) else v) for v in (old, value))
        if isinstance(old, dict) and isinstance(value, dict) and _same_type(old, value):
            merged[key] = _merge(old, value, here, replaced, voids=voids)
        else:
            merged[key] = value
            replaced.add(here)
    return merged


def _other_rows(base: dict[str, Any], top: dict[str, Any]) -> set[str]:
    """The keys of a `data` block below that a block on top makes void: rows come from one source."""
    said = {key for key, value in top.items() if value is not None}
    files = {"train_file", "validation_file", "test_file"}
    hub = {"dataset_name", "dataset_config_name", "revision", "train_split", "validation_split", "test_split"}
    gone: set[str] = set()
    if said & files:
        gone |= hub | {"data_dir"}
    if "data_dir" in said:
        gone |= hub | files
    if "dataset_name" in said:
        gone |= files | {"data_dir"}
    for split in ("validation", "test"):
        own = {f"{split}_file", f"{split}_split"}
        if said & own:
            gone.add(f"{split}_fraction")
        if f"{split}_fraction" in said:
            gone |= own
    return gone - said


def _other_weights(base: dict[str, Any], top: dict[str, Any]) -> set[str]:
    """The keys of a `model` block below that a block on top makes void: a model is pretrained or fresh."""
    gone: set[str] = set()
    if top.get("from_config") and base.get("name_or_path"):
        gone = {"name_or_path", "revision", "sha256"}
    if top.get("name_or_path") and base.get("from_config"):
        gone = {"from_config", "tokenizer", "revision"}
    return gone - {key for key, value in top.items() if value is not None}


_VOIDS = {("data",): _other_rows, ("model",): _other_weights}


def _same_type(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two blocks are of one component, or two configurations of one architecture."""
    return all(name not in new or old.get(name, new[name]) == new[name] for name in ("type", "model_type"))


def _leaves(tree: Any, path: KeyPath = ()) -> list[KeyPath]:
    """The path of every key in a tree, inner ones included."""
    if isinstance(tree, dict):
        return [path, *(leaf for key, value in tree.items() for leaf in _leaves(value, (*path, key)))]
    return [path]
