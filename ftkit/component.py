"""What tasks, families, methods, metrics and data formats have in common.

The schema of a component *is* the component: a frozen pydantic model with a `type`
literal and its behaviour as methods. A new one is one new file in its folder; nothing
else is edited.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
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
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


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


def one_of(base: type[Any]) -> Any:
    """The type of a recipe slot that holds one component of a kind.

    A component without options may be written as its bare name.
    """
    kinds = discover(base)
    if len(kinds) == 1:
        (choice,) = kinds.values()
        return Annotated[choice, _Shorthand(tuple(kinds))]
    union = Union[tuple(kinds.values())]  # noqa: UP007 - built at run time, so no `|` to write
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


def _expand(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def _subclasses(base: type[C]) -> list[type[C]]:
    found = []
    for child in base.__subclasses__():
        found += [child, *_subclasses(child)]
    return found
