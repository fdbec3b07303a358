"""Ranking: how likely a model finds each answer, whatever its architecture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from ftkit.prompts.prompting import Prompt
from ftkit.training.precision import lowered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R")
_BATCH_TOKENS = 4096
MOST_LOGITS = 2**26
"""The most logits that a batch may have at once."""
_LONGEST_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer's score.

    Attributes:
        likelihood: Log-probability of its tokens, in nats.
        tokens: How many there are.
    """

    likelihood: float
    tokens: int


class Ranker(ABC, Generic[R]):
    """Scores answers to prompts; a row is a prompt with its answers as this architecture reads them.

    Args:
        model: With its language model head; its weights are held in the precision from here on.
        tokenizer: The model's own.
        device: Where it runs.
        precision: `fp32`, `bf16` or `fp16`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model: Any = lowered(model, precision).to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.precision = precision

    @abstractmethod
    def row(self, prompt: Prompt, answers: Sequence[str]) -> R:
        """The token ids of a prompt with each answer.

        Raises:
            InputError: An answer has no token.
        """

    @abstractmethod
    def longest(self, row: R) -> int:
        """Tokens of the longest sequence in a row."""

    @abstractmethod
    def scores(self, rows: Sequence[R], keys: Sequence[Hashable]) -> list[list[Ranked]]:
        """The score of every answer of every row, in order.

        Args:
            rows: What `row` gave.
            keys: Rows with the same key begin alike, so that work can be shared.
        """

    def tensor(self, rows: Sequence[Sequence[Any]], fill: int) -> torch.Tensor:
        """Rows padded at the end."""
        width = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=self.device)


def in_batches(lengths: Sequence[int], tokens: int = _BATCH_TOKENS) -> list[list[int]]:
    """Places of rows in batches of similar length, the longest first.

    >>> in_batches([3, 9, 4], tokens=10)
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches: list[list[int]] = []
    for place in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


class Joint:
    """Tokenizes prompts with answers as one text, as lm_eval does: apart, the token at the border can come
    out otherwise, which changes scores.

    What tokens an answer adds depends on the end of the prompt alone; so only that is tokenized with each
    answer, and what was found is kept. The first prompt is tokenized whole as well: where the two differ,
    all are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._tails: dict[tuple[str, str], list[int]] = {}
        self._local: bool | None = None if tokenizer.is_fast else False

    def __call__(self, context: str, answers: Sequence[str], *, special: bool) -> tuple[int, list[list[int]]]:
        """How many tokens the context alone has, and the tokens of it with each answer.

        White space at the end of the context belongs to the answers.
        """
        kept = context.rstrip()
        answers = [context[len(kept) :] + answer for answer in answers]
        if not kept or self._local is False:
            return self._whole(kept, answers, special=special)
        quick = self._by_tail(kept, answers, special=special)
        if self._local is None:
            whole = self._whole(kept, answers, special=special)
            self._local = quick == whole
            return whole
        return quick or self._whole(kept, answers, special=special)

    def _whole(self, context: str, answers: Sequence[str], *, special: bool) -> tuple[int, list[list[int]]]:
        start = len(self._ids([context], special=special)[0])
        return start, self._ids([context + answer for answer in answers], special=special)

    def _by_tail(
        self, context: str, answers: Sequence[str], *, special: bool
    ) -> tuple[int, list[list[int]]] | None:
        """The same by the end of the context; `None` where it cannot be told apart."""
        encoding: Any = self.tokenizer(
            context, add_special_tokens=special, truncation=False, verbose=False, return_offsets_mapping=True
        )
        ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
        # From the third word from the end on: the first of them shows that the cut is harmless.
        cut = len(context)
        for _ in range(3):
            cut = max(context.rfind(" ", 0, cut), context.rfind("\n", 0, cut))
            if cut <= 0:
                return None
        place = next((n for n, (start, end) in enumerate(offsets) if start >= cut and end > start), None)
        if place is None or (place and offsets[place - 1][1] > cut):
            return None
        tail = context[cut:]
        if self._tail(tail, "") != ids[place:]:
            return None
        return len(ids), [ids[:place] + self._tail(tail, answer) for answer in answers]

    def _tail(self, tail: str, answer: str) -> list[int]:
        if len(self._tails) > _LONGEST_KEPT:
            self._tails.clear()
        if (tail, answer) not in self._tails:
            self._tails[tail, answer] = self._ids([tail + answer], special=False)[0]
        return self._tails[tail, answer]

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        encoding = self.tokenizer(list(texts), add_special_tokens=special, truncation=False, verbose=False)
        return [list(ids) for ids in encoding["input_ids"]]


def log_sum(values: Sequence[float]) -> float:
    """The logarithm of a sum of exponentials."""
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))
