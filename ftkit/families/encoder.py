"""Encoders: BERT and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ftkit.families.base import Family, auto_model_types


class Encoder(Family):
    """Bidirectional encoders: BERT, DistilBERT, RoBERTa, DeBERTa, ELECTRA, ModernBERT."""

    type: Literal["encoder"] = "encoder"
    examples: ClassVar[str] = "bert, distilbert, roberta, deberta-v2, electra, modernbert"
    language_model: ClassVar[str] = "AutoModelForMaskedLM"

    @classmethod
    def owns(cls, config: Mapping[str, Any]) -> bool:
        # BERT-like types are also in the causal mapping; `is_decoder` tells which one it is.
        one_stack = not (config.get("is_encoder_decoder") or config.get("is_decoder"))
        return one_stack and config.get("model_type") in auto_model_types("MODEL_FOR_MASKED_LM_MAPPING_NAMES")
