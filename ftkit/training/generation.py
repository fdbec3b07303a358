"""Generation: texts written token by token, in batches of similar length."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ftkit.training.precision import autocast
from ftkit.training.processes import processes, shared
from ftkit.training.sharding import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOW = {"bf16": torch.bfloat16}


class Writer:
    """Writes what follows prompts.

    Args:
        model: A decoder or encoder-decoder with its language model head.
        tokenizer: Its tokenizer.
        settings: By the names of transformers' `GenerationConfig`.
        stop: Tokens after which nothing more is written.
        precision: `fp32`, `bf16` or `fp16`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: Mapping[str, Any],
        stop: Sequence[int] | None,
        precision: str,
    ) -> None:
        from transformers import GenerationConfig

        self.device = processes().device
        self.precision = precision
        # Step by step, casting all weights for each token would cost more than the arithmetic.
        low = _LOW.get(precision)
        self.sharded = is_sharded(model)
        self.model: Any = copy.deepcopy(model).to(low) if low and not self.sharded else model
        if not self.sharded:
            self.model.to(self.device)
        self.model.eval()
        self.tokenizer = tokenizer
        pad = tokenizer.pad_token_id
        self.config = GenerationConfig(**settings, pad_token_id=pad, eos_token_id=stop, use_cache=True)

    def write(self, prompts: Sequence[list[int]], batch: int) -> list[str]:
        """What follows each prompt, in order; every process writes its share and gets all.

        Args:
            prompts: Token ids.
            batch: How many are written side by side.
        """
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        batches = [order[start : start + batch] for start in range(0, len(order), batch)]
        state = processes()
        mine: list[tuple[int, str]] = []
        for numbers, counts in shared(batches):
            texts = self._batch([prompts[number] for number in numbers])
            mine += zip(numbers, texts, strict=True) if counts else ()
        everyone = gather_object(mine) if state.num_processes > 1 else mine
        return [text for _, text in sorted(everyone)]

    def stream(self, prompt: list[int], show: Callable[[str], None]) -> str:
        """What follows one prompt; each piece is shown as soon as it stands."""
        from transformers import TextStreamer

        if self.config.num_beams and self.config.num_beams > 1:
            # Beams are compared at the end; nothing of them is sure before.
            (text,) = self._batch([prompt])
            show(text)
            return text

        class Shown(TextStreamer):
            begun = False

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                # The space between a prompt and its answer belongs to neither.
                piece = text if self.begun else text.lstrip()
                self.begun = self.begun or bool(piece)
                show(piece)

        streamer = Shown(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        return self._batch([prompt], streamer)[0]

    def _batch(self, prompts: Sequence[list[int]], streamer: Any = None) -> list[str]:
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        apart = self.model.config.is_encoder_decoder
        # A decoder's prompt must end where its continuation begins; an encoder counts from the left.
        padded = [_padded(prompt, pad, width, right=apart) for prompt in prompts]
        known = [_padded([1] * len(prompt), 0, width, right=apart) for prompt in prompts]
        ids, mask = torch.tensor(padded, device=self.device), torch.tensor(known, device=self.device)
        whole_low = self.precision in _LOW and not self.sharded
        casting = nullcontext() if whole_low else autocast(self.device, self.precision)
        with torch.no_grad() if self.sharded else torch.inference_mode(), casting:
            # A sharded model goes on until every process is done, as each holds a part of it.
            written = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self.config,
                streamer=streamer,
                synced_gpus=self.sharded,
            )
        if not apart:
            written = written[:, width:]
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _padded(row: list[int], pad: int, width: int, *, right: bool) -> list[int]:
    filled = [pad] * (width - len(row))
    return row + filled if right else filled + row
