"""How long a model's inputs can be, as its configuration tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.errors import UsageError

_SHORTEST_PROMPT = 8
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""Names under which configurations say how far back a token sees (Mistral, GPT-Neo, Llama 4)."""
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
# Their positions are numbered from after the padding index, so its rows of the table are none.
_FROM_PADDING = {
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a model can number.

    Args:
        config: The content of config.json, or a configuration as a dictionary.

    Returns:
        The number; `None` where any length works, or the configuration does not tell.

    >>> positions_of({"model_type": "gpt2", "n_positions": 1024})
    1024
    >>> positions_of({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    512
    >>> deberta = {"model_type": "deberta-v2", "max_position_embeddings": 512}
    >>> positions_of(deberta), positions_of({**deberta, "position_biased_input": False})
    (512, None)
    >>> positions_of({"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}})
    131072
    """
    if isinstance(text := config.get("text_config"), Mapping):
        # A model of texts and images tells of its texts apart.
        return positions_of(text)
    found = (config.get(name) for name in _NAMES)
    positions = next((number for number in found if isinstance(number, int)), 0)
    # T5's positions are relative; its `n_positions` was the length that it was trained with.
    is_relative = "relative_attention_num_buckets" in config and "max_position_embeddings" not in config
    # DeBERTa says 0 or -1 where its positions are relative, or that nothing is added for them (version 3).
    is_relative = is_relative or config.get("position_biased_input") is False
    if positions <= 0 or is_relative:
        return None
    if config.get("model_type") not in _FROM_PADDING:
        return positions
    padding = config.get("pad_token_id")
    return positions - (1 if padding is None else padding) - 1


def longest_prompt(config: Mapping[str, Any], new_tokens: int, *, apart: bool) -> int | None:
    """The positions that are left to a prompt when texts are written.

    Args:
        config: As above.
        new_tokens: The most tokens that are written.
        apart: Whether what is written has positions of its own, as in an encoder-decoder.

    Returns:
        The number; `None` where what is written does not limit the prompt.

    Raises:
        UsageError: There is no room for what is written, or hardly any for a prompt.
    """
    positions = positions_of(config)
    if positions is None:
        return None
    left = positions - new_tokens
    if left < (0 if apart else _SHORTEST_PROMPT):
        raise UsageError(
            f"generation.max_new_tokens is {new_tokens}, the model has {positions} positions",
            hint="lower it, so that a prompt fits as well",
        )
    return None if apart else left
