"""What a model family knows: which configurations are its own, and how its models load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.component import Component
from ftkit.installed import auto_classes

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


def auto_model_types(mapping: str) -> frozenset[str]:
    """The model types in one of transformers' auto mappings, read without importing it.

    Args:
        mapping: For example `MODEL_FOR_MASKED_LM_MAPPING_NAMES`.
    """
    return frozenset(auto_classes(mapping))
