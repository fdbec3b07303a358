"""Rank answers by the likelihood that a causal language model gives them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftkit.errors import InputError
from ftkit.training.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

_BATCH_TOKENS = 2048
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens of a context and an answer, and where the answer begins.

    Attributes:
        ids: All token ids.
        start: Position of the answer's first token.
        characters: Length of the answer.
        octets: Its length in bytes of UTF-8.
    """

    ids: list[int]
    start: int
    characters: int
    octets: int

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.start


def continuation(tokenizer: PreTrainedTokenizerBase, context: str, answer: str) -> Continuation:
    """Tokenize a context with an answer as one text.

    The answer's tokens are those after as many as the context alone has, as in lm_eval: tokenized
    apart, a token at the border can come out otherwise, which changes scores.

    Raises:
        InputError: No token is left for the answer.
    """
    whole = list(tokenizer(context + answer, truncation=False, verbose=False)["input_ids"])
    start = len(tokenizer(context, truncation=False, verbose=False)["input_ids"])
    if start >= len(whole):
        raise InputError(f"the answer {answer!r} has no token of its own after the prompt")
    # A model says nothing of the first token of a text.
    return Continuation(whole, max(start, 1), len(answer), len(answer.encode()))


class Ranker:
    """Sums of the log-probabilities of answers, with what all prompts begin with computed once.

    The keys and values of the common beginning are kept and reused for every row. The first rows are
    computed plainly as well; where the two disagree (a cache that slides, say), the plain way is used
    throughout, and that is said.
    """

    def __init__(self, model: nn.Module, *, device: torch.device, precision: str, pad: int) -> None:
        self.model: Any = model.to(device).eval()
        self.device = device
        self.precision = precision
        self.pad = pad

    def scores(self, rows: Sequence[Continuation]) -> list[float]:
        """Log-probability of each answer given its context, in order."""
        shared = min(_common([row.ids for row in rows]), *(row.start - 1 for row in rows))
        if shared and not self._agrees(rows[:2], shared):
            log.warning("  note: this model's cache is not exact here; prompts are computed whole")
            shared = 0
        cache = self._cache(rows[0].ids[:shared]) if shared else None
        scores = [0.0] * len(rows)
        for batch in _batches(rows, shared):
            values = self._batch([rows[number] for number in batch], shared, cache)
            for number, value in zip(batch, values.tolist(), strict=True):
                scores[number] = value
        return scores

    def _agrees(self, rows: Sequence[Continuation], shared: int) -> bool:
        plain = self._batch(rows, 0, None)
        cached = self._batch(rows, shared, self._cache(rows[0].ids[:shared]))
        return bool((plain - cached).abs().max() <= _TOLERANCE[self.precision])

    def _cache(self, ids: Sequence[int]) -> Any:
        with torch.inference_mode(), autocast(self.device, self.precision):
            inputs = torch.tensor([list(ids)], device=self.device)
            return self.model(input_ids=inputs, use_cache=True, logits_to_keep=1)["past_key_values"]

    def _batch(self, rows: Sequence[Continuation], shared: int, cache: Any) -> Tensor:
        """Scores of rows whose first `shared` tokens are in the cache, shape (rows,)."""
        rests = [row.ids[shared:] for row in rows]
        width = max(map(len, rests))
        ids = torch.tensor([rest + [self.pad] * (width - len(rest)) for rest in rests], device=self.device)
        mask = torch.tensor(
            [[1] * (shared + len(r)) + [0] * (width - len(r)) for r in rests], device=self.device
        )
        past = {}
        if cache is not None:
            past["past_key_values"] = copy.deepcopy(cache)
            past["past_key_values"].batch_repeat_interleave(len(rows))
        # The logits before the first answer token of any row are not needed.
        kept = width - min(row.start - 1 - shared for row in rows)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=kept, **past)["logits"]
        return torch.stack([self._sum(logits[n], row, shared + width - kept) for n, row in enumerate(rows)])

    def _sum(self, logits: Tensor, row: Continuation, first: int) -> Tensor:
        """Sum over the answer's tokens; `first` is the position of the first logits."""
        answer = torch.tensor(row.ids[row.start :], device=self.device)
        before = logits[row.start - 1 - first : len(row.ids) - 1 - first].float()
        return before.log_softmax(dim=-1).gather(1, answer[:, None]).sum()


def _batches(rows: Sequence[Continuation], shared: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    batches: list[list[int]] = []
    for number in order:
        if batches and (len(batches[-1]) + 1) * (len(rows[batches[-1][0]].ids) - shared) <= _BATCH_TOKENS:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _common(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with: as many as the first and the last in order share.

    >>> _common([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    2
    """
    pairs = zip(min(rows), max(rows), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
