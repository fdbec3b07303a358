"""What a model family knows: which configurations are its own, and how its models load."""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.component import Component
from ftkit.installed import statements_of

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
    for node in statements_of("models/auto/modeling_auto.py"):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == mapping:
            # The value is `OrderedDict([("bert", "BertForMaskedLM"), ...])`.
            call = node.value
            pairs = call.args[0] if isinstance(call, ast.Call) else call
            return frozenset(name for name, _ in ast.literal_eval(pairs))
    raise LookupError(f"transformers has no {mapping}")
