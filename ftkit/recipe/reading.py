"""YAML in, a plain tree and the line of every key out.

Strict where PyYAML is lax: duplicate keys are errors, `2e-5` is a number, `yes` and `no` are
words (YAML 1.2), tags such as `!!python/object` are refused, and so are aliases, which have
no use in a recipe and can be nested into gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ftkit.errors import Problem, RecipeError, UsageError

KeyPath: TypeAlias = tuple[str | int, ...]
Places: TypeAlias = dict[KeyPath, str]
"""Where each key was said: `recipe.yaml:7`, or `--set a.b=c`."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


# YAML 1.1 reads 010 as eight; here it is ten, as a reader expects.
def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def read_yaml(text: str, name: str) -> tuple[dict[str, Any], Places]:
    """Parse a recipe.

    Args:
        text: The YAML text.
        name: What to call it in messages, usually the path.

    Returns:
        The tree, and the place of every key by its path.

    Raises:
        RecipeError: Every duplicate key, tag and alias at once; or the syntax error.

    """
    try:
        problems = list(_aliases(text, name))
        node = None if problems else yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError([Problem(where, "", f"not YAML: {getattr(error, 'problem', error)}")]) from None
    places: Places = {}
    tree = _build(node, (), name, places, problems) if node else None
    if problems:
        raise RecipeError(problems)
    if not isinstance(tree, dict):
        raise RecipeError([Problem(f"{name}:1", "", "a recipe is a mapping, such as `task: {type: ...}`")])
    return tree, places


def read_value(text: str) -> Any:
    """Parse the value of `--set key=value` as YAML.

    Raises:
        UsageError: The value is not YAML, or uses a tag or an alias.

    """
    try:
        return read_yaml(f"value: {text}", "--set")[0]["value"]
    except RecipeError as error:
        raise UsageError(f"--set: the value {text!r}: {error.problems[0].what}") from None


def read_file(path: Path) -> tuple[dict[str, Any], Places]:
    """Read a recipe file; see `read_yaml`."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("the recipe is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from None
    return read_yaml(text, str(path))


def _aliases(text: str, name: str) -> Iterator[Problem]:
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            where = f"{name}:{line}"
            yield Problem(where, "", f"alias *{event.anchor}: aliases are refused; write the value out")


def _build(node: yaml.Node, path: KeyPath, name: str, places: Places, problems: list[Problem]) -> Any:
    place = f"{name}:{node.start_mark.line + 1}"
    places.setdefault(path, place)
    key = dotted(path)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, name, places, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*path, i), name, places, problems) for i, child in enumerate(node.value)]
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag not in _Loader.yaml_constructors:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        problems.append(Problem(place, key, f"the tag {tag} is refused: recipes hold plain values"))
        return None
    return _scalar(node)


def _build_mapping(
    node: yaml.MappingNode, path: KeyPath, name: str, places: Places, problems: list[Problem]
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    if node.tag != "tag:yaml.org,2002:map":
        problems.append(Problem(places[path], dotted(path), f"the tag {node.tag} is refused"))
    for key_node, value_node in node.value:
        key = str(_scalar(key_node)) if isinstance(key_node, yaml.ScalarNode) else "?"
        here = (*path, key)
        place = f"{name}:{key_node.start_mark.line + 1}"
        if key in tree:
            first = places[here].rpartition(":")[2]
            problems.append(Problem(place, dotted(here), f"duplicate key (first on line {first})"))
            continue
        places[here] = place
        tree[key] = _build(value_node, here, name, places, problems)
    return tree


def _scalar(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def dotted(path: KeyPath) -> str:
    """`("data", "columns", 0)` as `data.columns.0`."""
    return ".".join(map(str, path))
