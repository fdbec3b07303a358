"""Generation: texts written token by token, in batches of similar length."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ftkit.training.positions import WINDOWS
from ftkit.training.precision import autocast, lowered, lowered_copy
from ftkit.training.processes import processes, shared
from ftkit.training.sharding import is_sharded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_FEWEST_SHARED = 16
"""The shortest common beginning of prompts that is worth computing apart."""
NO_RULES = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""What a checkpoint says of lengths and repetitions is meant for free text: by it, a form of words that is to
stand twice could not be written."""
Allowed = Callable[[int, Sequence[int]], list[int]]
"""The tokens that may follow, by the number of the prompt and what has been written after it."""


class Writer:
    """Writes what follows prompts.

    Args:
        model: A decoder or encoder-decoder with its language model head.
        tokenizer: Its tokenizer.
        settings: By the names of transformers' `GenerationConfig`.
        stop: Tokens after which nothing more is written.
        precision: `fp32`, `bf16` or `fp16`.
        until: Texts after which nothing more is written; they are left out.
        copied: Whether the model is left as it is; else its weights are held in the precision from here on.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: Mapping[str, Any],
        stop: Sequence[int] | None,
        precision: str,
        until: Sequence[str] = (),
        copied: bool = True,
    ) -> None:
        self.device = processes().device
        self.precision = precision
        # Step by step, casting all weights for each token would cost more than the arithmetic.
        self.sharded = is_sharded(model)
        self.low = precision == "bf16" and not self.sharded
        lower = lowered_copy if copied else lowered
        self.model: Any = lower(model, precision) if self.low else model
        if not self.sharded:
            self.model.to(self.device)
        self.model.eval()
        self.tokenizer = tokenizer
        self.until = tuple(until)
        self.config = generation_config(model, tokenizer, settings, stop)

    def write(self, prompts: Sequence[list[int]], batch: int) -> list[str]:
        """What follows each prompt, in order; every process writes its share and gets all.

        Args:
            prompts: Token ids.
            batch: How many are written side by side.
        """
        mine: list[tuple[int, str]] = []
        for numbers, counts in shared(_longest_first(prompts, batch)):
            texts = self._batch([prompts[number] for number in numbers])
            mine += zip(numbers, texts, strict=True) if counts else ()
        everyone = gather_object(mine) if processes().num_processes > 1 else mine
        return [text for _, text in sorted(everyone)]

    def write_alone(
        self, prompts: Sequence[list[int]], batch: int, allowed: Allowed | None = None
    ) -> list[str]:
        """The same by this process alone, which may have prompts of its own; what all of them begin with is
        computed once.

        Args:
            prompts: Token ids.
            batch: How many are written side by side.
            allowed: Says which tokens may follow; by default all.
        """
        prefix = self._prefix(prompts)
        texts: dict[int, str] = {}
        for numbers in _longest_first(prompts, batch):
            chosen = None if allowed is None else partial(_of_batch, allowed, numbers)
            written = self._batch([prompts[number] for number in numbers], allowed=chosen, prefix=prefix)
            texts.update(zip(numbers, written, strict=True))
        return [texts[number] for number in range(len(prompts))]

    def stream(self, prompt: list[int], show: Callable[[str], None]) -> str:
        """What follows one prompt; each piece is shown as soon as it stands."""
        from transformers import TextStreamer

        if self.config.num_beams and self.config.num_beams > 1:
            # Beams are compared at the end; nothing of them is sure before.
            (text,) = self._batch([prompt])
            show(text)
            return text

        until, half = self._until, max(map(len, self.until), default=1) - 1

        class Shown(TextStreamer):
            written = shown = ""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.written += text
                sure = until(self.written)
                if sure == self.written and not stream_end:
                    # Its end may be half of a text that ends the answer.
                    sure = sure[: max(0, len(sure) - half)]
                # The space between a prompt and its answer belongs to neither.
                sure = sure.lstrip()
                show(sure[len(self.shown) :])
                self.shown = sure

        streamer = Shown(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        return self._batch([prompt], streamer)[0]

    def _batch(
        self,
        prompts: Sequence[list[int]],
        streamer: Any = None,
        allowed: Allowed | None = None,
        prefix: Any = None,
    ) -> list[str]:
        shared = prefix.get_seq_length() if prefix else 0
        rests = [prompt[shared:] for prompt in prompts]
        width = max(map(len, rests))
        pad = self.tokenizer.pad_token_id
        apart = self.model.config.is_encoder_decoder
        # A decoder's prompt must end where its continuation begins; an encoder counts from the left.
        padded = [prompts[0][:shared] + _padded(rest, pad, width, right=apart) for rest in rests]
        known = [[1] * shared + _padded([1] * len(rest), 0, width, right=apart) for rest in rests]
        ids, mask = torch.tensor(padded, device=self.device), torch.tensor(known, device=self.device)
        start = 1 if apart else shared + width
        beams = max(self.config.num_beams or 1, self.config.num_return_sequences or 1)
        # transformers repeats the rows for beams, but not what is known of them.
        known_before = _repeated(prefix, len(prompts) * beams) if prefix else None
        options: dict[str, Any] = {"past_key_values": known_before} if prefix else {}
        if allowed is not None:
            options["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row, ids[start:].tolist())
        if self.until:
            options["stopping_criteria"] = [self._ended(start)]
        casting = nullcontext() if self.low else autocast(self.device, self.precision)
        with torch.no_grad() if self.sharded else torch.inference_mode(), casting:
            # A sharded model goes on until every process is done, as each holds a part of it.
            written = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self.config,
                streamer=streamer,
                synced_gpus=self.sharded,
                **options,
            )
        texts: list[str] = self.tokenizer.batch_decode(written[:, start:], skip_special_tokens=True)
        return [self._until(text).strip() for text in texts]

    def _until(self, text: str) -> str:
        places = [place for end in self.until if (place := text.find(end)) >= 0]
        return text[: min(places, default=len(text))]

    def _ended(self, start: int) -> Any:
        """Tells for each row whether one of the texts that end it has been written."""
        from transformers import StoppingCriteria

        until, tokenizer, longest = self.until, self.tokenizer, max(map(len, self.until)) + 1

        class Ended(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                last = input_ids[:, max(start, input_ids.shape[1] - longest) :]
                texts = tokenizer.batch_decode(last)
                ended = [any(end in text for end in until) for text in texts]
                return torch.tensor(ended, device=input_ids.device)

        return Ended()

    def _prefix(self, prompts: Sequence[list[int]]) -> Any:
        """Keys and values of what all prompts begin with; `None` where that does not pay or is not exact."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        config = self.model.config.get_text_config()
        shared = min(common(prompts), min(map(len, prompts)) - 1)
        # Padding stands between what is shared and the rest, so distances must come from positions alone.
        by_place = any(getattr(config, name, None) for name in WINDOWS)
        by_place = by_place or "position_ids" not in inspect.signature(self.model.forward).parameters
        if self.model.config.is_encoder_decoder or by_place or len(prompts) < 2 or shared < _FEWEST_SHARED:
            return None
        casting = nullcontext() if self.low else autocast(self.device, self.precision)
        try:
            with torch.inference_mode(), casting:
                made = self.model(
                    input_ids=torch.tensor([prompts[0][:shared]], device=self.device),
                    past_key_values=DynamicCache(),
                    use_cache=True,
                    logits_to_keep=1,
                )["past_key_values"]
        except Exception:  # noqa: BLE001
            # Any way in which an architecture, such as one with a state, does not bear it; what is wrong with
            # the model itself comes up again when it writes.
            return None
        return made if all(type(layer) is DynamicLayer for layer in made.layers) else None


def generation_config(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], stop: Sequence[int] | None
) -> GenerationConfig:
    """How texts are written: by the settings, and where they say nothing, as the model's own configuration
    says. That is what transformers does as well, only later, where nobody sees it.
    """
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id
    config = GenerationConfig(**settings, pad_token_id=pad, eos_token_id=stop, use_cache=True)
    config.update(**model.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    return config


def said(config: GenerationConfig) -> dict[str, Any]:
    """What a configuration says, by name; for all else transformers' defaults hold."""
    own = {"transformers_version", "_from_model_config"}
    return {name: value for name, value in config.to_diff_dict().items() if name not in own}


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens after which a model stops, as far as its tokenizer has them."""
    own = model.generation_config.eos_token_id
    known = {own} if own is None or isinstance(own, int) else set(own)
    return {end for end in known | {tokenizer.eos_token_id} if end is not None and end < len(tokenizer)}


def _longest_first(prompts: Sequence[list[int]], batch: int) -> list[list[int]]:
    """Numbers of prompts in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def _repeated(prefix: Any, rows: int) -> Any:
    cache = copy.deepcopy(prefix)
    cache.batch_repeat_interleave(rows)
    return cache


def _of_batch(allowed: Allowed, numbers: Sequence[int], row: int, written: Sequence[int]) -> list[int]:
    return allowed(numbers[row], written)


def _padded(row: list[int], pad: int, width: int, *, right: bool) -> list[int]:
    filled = [pad] * (width - len(row))
    return row + filled if right else filled + row


def common(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with: as many as the first and the last in order share.

    >>> common([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    2
    """
    first, last = min(rows), max(rows)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))
