"""What tasks, families, methods, metrics and data formats have in common.

The schema of a component *is* the component: a frozen pydantic model with a `type`
literal and its behaviour as methods. A new one is one new file in its folder; nothing
else is edited.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

C = TypeVar("C", bound="Component")


class Block(BaseModel):
    """A block of a recipe: strict about its keys and never changed after it is read."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        # A block is checked as a part of the recipe; its own validator is hardly ever needed.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The JSON Schema with the docstrings of the keys.

        Pydantic can collect them when a class is made, but that reads the source of every block
        whenever a recipe is checked; here it is read when someone asks for the schema.
        """
        described = handler.resolve_ref_schema(handler(schema))
        for name, text in attribute_docstrings(cls).items():
            if name in described.get("properties", {}):
                described["properties"][name].setdefault("description", text)
        return described


class Component(Block):
    """A block that is chosen by its `type`."""

    type: str

    @classmethod
    def name(cls) -> str:
        """The value of `type` that chooses this component."""
        return str(cls.model_fields["type"].default)

    @classmethod
    def summary(cls) -> str:
        """The first paragraph of the docstring on one line, for lists and generated pages."""
        return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


@cache
def discover(base: type[C]) -> Mapping[str, type[C]]:
    """All components of one kind by name: every module beside `base` is imported once.

    Args:
        base: The kind, e.g. `ftkit.tasks.base.Task`.

    Returns:
        The concrete subclasses (those whose `type` has a default), sorted by name.
    """
    package = importlib.import_module(base.__module__.rpartition(".")[0])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    concrete = [c for c in _subclasses(base) if not c.model_fields["type"].is_required()]
    return {component.name(): component for component in sorted(concrete, key=lambda c: c.name())}


def one_of(base: Any) -> Any:
    """The type of a recipe slot that holds one component of a kind.

    A component without options may be written as its bare name.
    """
    kinds: Mapping[str, Any] = discover(base)
    if len(kinds) == 1:
        (choice,) = kinds.values()
        return Annotated[choice, _Shorthand(tuple(kinds))]
    union: Any = Union.__getitem__(tuple(kinds.values()))
    return Annotated[Annotated[union, Field(discriminator="type")], _Shorthand(tuple(kinds))]


class _Shorthand:
    """Reads `lora` as `{type: lora}`, and says so in the JSON Schema."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.names)}, handler(schema)]}


def attribute_docstrings(block: type[BaseModel]) -> dict[str, str]:
    """The string under each annotated attribute of a class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in block.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):
            continue  # made at run time, like the `training` block
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for attribute, text in itertools.pairwise(definition.body):
            match attribute, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = inspect.cleandoc(words)
    return found


def _expand(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def _subclasses(base: type[C]) -> list[type[C]]:
    found = []
    for child in base.__subclasses__():
        found += [child, *_subclasses(child)]
    return found
