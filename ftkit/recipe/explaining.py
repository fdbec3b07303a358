"""Errors of a recipe in the reader's words: place, key, what is allowed, the nearest match."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ftkit.errors import Problem
from ftkit.recipe.merging import Source
from ftkit.recipe.reading import KeyPath, dotted
from ftkit.training.arguments import OWNED

_MOST_SHOWN = 12


def explain(error: ValidationError, source: Source, schema: type[BaseModel]) -> list[Problem]:
    """Every error of a validation, in the order of the file."""
    found: dict[KeyPath, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        path = _in_tree(detail["loc"], source.tree, absent=detail["type"] == "missing")
        found.setdefault(path, []).append(detail)  # type: ignore[arg-type]
    problems = []
    for path, details in found.items():
        # The other branches of a union only say that they are other branches.
        if any(other[: len(path)] == path and other != path for other in found):
            continue
        key, what = _words(path, details, source.tree, schema)
        problems.append(Problem(source.place_of(path), key, what))
    return problems


def _words(
    path: KeyPath, details: Sequence[dict[str, Any]], tree: Any, schema: type[BaseModel]
) -> tuple[str, str]:
    """The key to name and the sentence for one place, whose union branches may each complain."""
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    key = dotted(path)
    if kind == "extra_forbidden":
        return key, _unknown(path, detail["loc"], schema)
    if kind == "missing":
        return key, "this key is needed"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        allowed = _types(detail["loc"], schema)
        if kind == "union_tag_not_found":
            return key, f"needs a `type`; allowed: {', '.join(allowed)}"
        given = detail["input"].get("type") if isinstance(detail["input"], dict) else context["tag"]
        return (key if _is_bare(path, tree) else f"{key}.type"), _not_among(given, allowed)
    if kind == "literal_error" and len(details) == 1:
        allowed = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
        return key, _not_among(detail["input"], allowed)
    if kind == "value_error":
        return key, str(context["error"])
    wanted = _joined([_wanted(one) for one in details])
    return key, f"{_shown(detail['input'])} is not {wanted}{_remedy(detail, len(details), schema)}"


def _remedy(detail: dict[str, Any], branches: int, schema: type[BaseModel]) -> str:
    """How the value would be written, where that is not plain from what was wanted."""
    kind, given = detail["type"], detail["input"]
    if kind in {"model_type", "model_attributes_type"}:
        if names := _types(detail["loc"], schema):
            return f" or one of: {', '.join(names)}"
        return f"; its keys: {_some(_allowed_keys(detail['loc'], schema))}"
    if kind == "string_type" and branches == 1 and isinstance(given, (int, float)):
        return "; put it in quotes"
    if kind == "list_type" and branches == 1 and isinstance(given, str):
        return f"; write [{given}]"
    return ""


def _unknown(path: KeyPath, loc: Sequence[Any], schema: type[BaseModel]) -> str:
    name = str(path[-1])
    if path[:-1] == ("training",) and name in OWNED:
        return f"ftkit owns this key: {OWNED[name]}"
    allowed = _allowed_keys(loc[:-1], schema)
    return "unknown key" + _suggestion(name, allowed)


def _types(loc: Sequence[Any], schema: type[BaseModel]) -> list[str]:
    """The values of `type` among which a pydantic location chooses."""
    kinds = _blocks(_annotation(loc, schema))
    return sorted(str(kind.model_fields["type"].default) for kind in kinds if "type" in kind.model_fields)


def _allowed_keys(loc: Sequence[Any], schema: type[BaseModel]) -> list[str]:
    """The keys of the block that a pydantic location leads to."""
    block = _annotation(loc, schema)
    return [*getattr(block, "model_fields", {}), *(["extends"] if block is schema else [])]


def _annotation(loc: Sequence[Any], schema: type[BaseModel]) -> Any:
    """The type at a pydantic location: a block, or a union whose branch the location leaves open."""
    block: Any = schema
    for step in loc:
        fields = getattr(block, "model_fields", None)
        if fields and step in fields:
            block = fields[step].annotation
        for kind in _blocks(block):
            literal = kind.model_fields.get("type")
            if literal is None or len(_blocks(block)) == 1 or literal.default == step:
                block = kind
                break
    return block


def _blocks(annotation: Any) -> list[Any]:
    """The models inside an annotation such as `list[Annotated[A | B, ...]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]


def _not_among(given: Any, allowed: Sequence[str]) -> str:
    return f"{_shown(given)} is not allowed" + _suggestion(str(given), allowed)


def _suggestion(given: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(given, allowed, n=1, cutoff=0.6)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    if len(allowed) > _MOST_SHOWN and nearest:
        return nearest
    return f"{nearest}{'' if nearest else ';'} allowed: {_some(allowed)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")


_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "string_type": "a string", "bool_type": "true or false", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "none_required": "null", "string_too_short": "a string with something in it",
    "finite_number": "a finite number",
}  # fmt: skip


def _wanted(detail: dict[str, Any]) -> str:
    """What one branch would have taken."""
    context = detail.get("ctx", {})
    limits = {"greater_than": ("gt", "over"), "greater_than_equal": ("ge", "at least"),
              "less_than": ("lt", "under"), "less_than_equal": ("le", "at most")}  # fmt: skip
    if detail["type"] in limits:
        key, word = limits[detail["type"]]
        bound = context[key]
        return f"{word} {int(bound) if bound == int(bound) else bound}"
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    return _WANTED.get(detail["type"], detail["msg"])


def _joined(parts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return " or ".join(unique)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)[:80]


def _is_bare(path: KeyPath, tree: Any) -> bool:
    """Whether the file has a component's bare name at a path."""
    for step in path:
        tree = tree[step]
    return isinstance(tree, str)


def _in_tree(loc: Sequence[Any], tree: Any, *, absent: bool) -> KeyPath:
    """A pydantic location without the names of union branches, which stand nowhere in the file.

    Args:
        loc: The location.
        tree: The recipe.
        absent: Whether the last step is the name of a key that should be there.
    """
    path: list[str | int] = []
    for position, step in enumerate(loc):
        if (isinstance(tree, dict) and step in tree) or (
            isinstance(tree, list) and isinstance(step, int) and step < len(tree)
        ):
            tree = tree[step]
        elif not absent or position + 1 < len(loc):
            continue
        path.append(step)
    return tuple(path)
