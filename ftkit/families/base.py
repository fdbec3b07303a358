"""What a model family knows: which configurations are its own, and how its models load."""

from __future__ import annotations

import ast
import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.component import Component

if TYPE_CHECKING:
    from ftkit.training.setup import Loaded


class Family(Component):
    """A kind of architecture."""

    examples: ClassVar[str]
    """Well-known members, for lists."""
    language_model: ClassVar[str]
    """The auto class that gives its members their language model head."""

    @classmethod
    @abstractmethod
    def owns(cls, config: Mapping[str, Any]) -> bool:
        """Whether a model with this config.json belongs to the family."""

    @classmethod
    def complete(cls, loaded: Loaded) -> None:
        """Supply what checkpoints of this family leave out, in the model and in the tokenizer."""
        return


@cache
def auto_model_types(mapping: str) -> frozenset[str]:
    """The model types in one of transformers' auto mappings, read without importing it.

    Args:
        mapping: For example `MODEL_FOR_MASKED_LM_MAPPING_NAMES`.
    """
    value = _assigned().get(mapping)
    if value is None:
        raise LookupError(f"transformers has no {mapping}")
    # The value is `OrderedDict([("bert", "BertForMaskedLM"), ...])`.
    pairs = value.args[0] if isinstance(value, ast.Call) else value
    return frozenset(name for name, _ in ast.literal_eval(pairs))


@cache
def _assigned() -> dict[str, ast.expr]:
    """What the module of the auto classes assigns, by name."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers is not installed")
    source = (Path(spec.origin).parent / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
    return {
        target.id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
