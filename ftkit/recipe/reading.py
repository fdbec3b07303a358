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


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the words that only `_Loader` reads as numbers: 1e5, 08."""


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _regexp, [_first])

_CORE = "tag:yaml.org,2002:"
_SCALARS = {f"{_CORE}{name}" for name in ("str", "bool", "int", "float", "null")}
# No recipe needs more; parsing takes time and stack that grow with the depth.
_DEEPEST = 32
_MARKS = (*",:-|>&*!%@`?",)


def read_yaml(text: str, name: str) -> tuple[dict[str, Any], Places]:
    """Parse YAML that must be right.

    Args:
        text: The YAML text.
        name: What to call it in messages, usually the path.

    Returns:
        The tree, and the place of every key by its path.

    Raises:
        RecipeError: Every duplicate key and tag, or every alias, at once; or the syntax error.
    """
    tree, places, problems = _read(text, name)
    if problems:
        raise RecipeError(problems)
    return tree, places


def read_value(text: str) -> Any:
    """Parse the value of `--set key=value` as YAML.

    >>> read_value("[1, two]"), read_value("|")
    ([1, 'two'], '|')

    Raises:
        UsageError: The value is not YAML, or uses a tag or an alias.
    """
    if text.strip() in _MARKS:
        # A separator, say; by itself YAML has no use for it.
        return text.strip()
    try:
        tree, _ = read_yaml(f"value: {text}", "--set")
    except RecipeError as error:
        raise UsageError(f"--set: the value {text!r}: {error.problems[0].what}") from None
    if len(tree) > 1:
        raise UsageError(f"--set: the value {text!r} holds a second key", hint="give --set once for each key")
    if _ends_in_comment(f"value: {text}"):
        raise UsageError(
            f"--set: the value {text!r} holds a #, which begins a comment in YAML",
            hint="put quotes around the value, within those of the shell: --set 'key=\"a #b\"'",
        )
    return tree["value"]


def _ends_in_comment(text: str) -> bool:
    """Whether something stands after the one value of a mapping."""
    node: Any = yaml.compose(text, Loader=_Loader)
    ((_, value),) = node.value
    return text[value.end_mark.index :].lstrip().startswith("#")


def read_file(path: Path) -> tuple[dict[str, Any], Places, list[Problem]]:
    """Read a recipe file.

    Returns:
        The tree, the place of every key, and what is wrong although the rest can be checked:
        duplicate keys and tags.

    Raises:
        RecipeError: There is no rest: it is not YAML, no mapping, or uses aliases.
        UsageError: It is not UTF-8, or the disk does not give it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("the recipe is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from None
    return _read(text, str(path))


def write_yaml(tree: dict[str, Any]) -> str:
    r"""The tree as YAML that `read_yaml` reads back.

    >>> write_yaml({"labels": ["1e5", "08", "no"]})
    "labels:\n- '1e5'\n- '08'\n- 'no'\n"
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read(text: str, name: str) -> tuple[dict[str, Any], Places, list[Problem]]:
    try:
        problems = list(_bombs(text, name))
        node = None if problems else yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(
            [_syntax(error, text, name)],
            hint="indent with spaces; quote a value that holds ': ' or ' #' or begins with one of []{}&*!%@`",
        ) from None
    if problems:
        raise RecipeError(problems)
    places: Places = {}
    tree = _build(node, (), name, places, problems) if node else None
    if not isinstance(tree, dict):
        what = "a recipe is a mapping, such as `task: {type: ...}`"
        raise RecipeError(problems or [Problem(f"{name}:1", "", what if node else f"it is empty; {what}")])
    return tree, places, problems


def _bombs(text: str, name: str) -> Iterator[Problem]:
    """What must not even be built: aliases, each once, and nesting without end."""
    seen = set()
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
        if isinstance(event, yaml.AliasEvent) and event.anchor not in seen:
            seen.add(event.anchor)
            yield Problem(where, "", f"alias *{event.anchor}: aliases are refused; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            yield Problem(where, "", f"nested more than {_DEEPEST} levels deep")
            return


def _syntax(error: yaml.YAMLError, text: str, name: str) -> Problem:
    """A syntax error with its line, and that of the bracket or quote that is not closed."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem(
            f"{name}:{line}", "", f"not YAML: the character {text[error.position]!a} is not allowed"
        )
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(name, "", f"not YAML: {error}")
    mark, begun = error.problem_mark, error.context_mark
    since = f" (from line {begun.line + 1})" if begun and mark and begun.line < mark.line else ""
    context = f"{error.context}{since}, " if error.context else ""
    return Problem(f"{name}:{mark.line + 1}" if mark else name, "", f"not YAML: {context}{error.problem}")


def _build(node: yaml.Node, path: KeyPath, name: str, places: Places, problems: list[Problem]) -> Any:
    place = f"{name}:{node.start_mark.line + 1}"
    places.setdefault(path, place)
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
        return _build_mapping(node, path, name, places, problems)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
        return [_build(child, (*path, i), name, places, problems) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
        tag = node.tag.replace(_CORE, "!!")
        problems.append(Problem(place, dotted(path), f"the tag {tag} is refused: recipes hold plain values"))
        return None
    try:
        return _scalar(node)
    except (ValueError, KeyError):
        # `!!int abc`, or a number of thousands of digits.
        kind = node.tag.replace(_CORE, "!!")
        problems.append(Problem(place, dotted(path), f"{node.value[:40]!r} cannot be read as {kind}"))
        return None


def _build_mapping(
    node: yaml.MappingNode, path: KeyPath, name: str, places: Places, problems: list[Problem]
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _SCALARS:
            problems.append(Problem(place, dotted(path), "a key must be a plain word"))
            continue
        # As it is written: `1` and `no` are names of labels, too.
        key = str(key_node.value)
        here = (*path, key)
        if key in tree:
            first = places[here].rpartition(":")[2]
            problems.append(Problem(place, dotted(here), f"duplicate key (first on line {first})"))
            continue
        places[here] = place
        tree[key] = _build(value_node, here, name, places, problems)
    return tree


def _scalar(node: yaml.ScalarNode) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def dotted(path: KeyPath) -> str:
    """`("data", "columns", 0)` as `data.columns.0`."""
    return ".".join(map(str, path))
