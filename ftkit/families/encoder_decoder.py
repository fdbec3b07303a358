"""Encoder-decoders: T5, BART and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftkit.families.base import Family, auto_model_types

if TYPE_CHECKING:
    from ftkit.training.setup import Loaded


class EncoderDecoder(Family):
    """Encoders with a decoder: T5, mT5, BART."""

    type: Literal["encoder_decoder"] = "encoder_decoder"
    examples: ClassVar[str] = "t5, mt5, bart"
    language_model: ClassVar[str] = "AutoModelForSeq2SeqLM"

    @classmethod
    def owns(cls, config: Mapping[str, Any]) -> bool:
        kind = config.get("model_type")
        if kind not in auto_model_types("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"):
            return False
        # BART may be one stack; T5 never is a decoder or an encoder alone, though with a token head its
        # configuration says that it is none of both.
        alone = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES")
        return bool(config.get("is_encoder_decoder")) or not any(
            kind in auto_model_types(mapping) for mapping in alone
        )

    @classmethod
    def complete(cls, loaded: Loaded) -> None:
        """T5 checkpoints do not always name the token that their decoder starts with: it is padding."""
        config = loaded.model.config
        if config.decoder_start_token_id is None:
            config.decoder_start_token_id = loaded.tokenizer.pad_token_id
