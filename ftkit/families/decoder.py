"""Decoders: GPT-2, LLaMA and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftkit.errors import InputError
from ftkit.families.base import Family, auto_model_types

if TYPE_CHECKING:
    from ftkit.training.setup import Loaded


class Decoder(Family):
    """Causal decoders: GPT-2, LLaMA, Qwen, Mistral, Gemma, GPT-NeoX, OPT."""

    type: Literal["decoder"] = "decoder"
    examples: ClassVar[str] = "gpt2, llama, qwen2, mistral, gemma, gpt_neox, opt"
    language_model: ClassVar[str] = "AutoModelForCausalLM"

    @classmethod
    def owns(cls, config: Mapping[str, Any]) -> bool:
        kind = config.get("model_type")
        if config.get("is_encoder_decoder") or kind not in auto_model_types(
            "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
        ):
            return False
        both = kind in auto_model_types("MODEL_FOR_MASKED_LM_MAPPING_NAMES")
        return bool(config.get("is_decoder")) if both else True

    @classmethod
    def complete(cls, loaded: Loaded) -> None:
        """Give a model without a padding token one, in the tokenizer and in the configuration.

        It is the end token, so that no embedding is added; padding is told by the attention mask,
        and a classifier reads the last token that is no padding.

        Raises:
            InputError: The tokenizer has no end token either.
        """
        tokenizer, config = loaded.tokenizer, loaded.model.config
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    "the tokenizer has neither a padding nor an end token", where=loaded.source,
                    hint="add pad_token to its tokenizer_config.json",
                )  # fmt: skip
            tokenizer.pad_token = tokenizer.eos_token
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        config.pad_token_id = tokenizer.pad_token_id
