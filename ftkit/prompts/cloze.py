"""Ranking with a masked language model: how likely an answer is in its place (Schick, Schütze, 2021)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftkit.errors import InputError
from ftkit.prompts.prompting import Prompt
from ftkit.prompts.ranking import Ranked, Ranker, in_batches

_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Masked:
    """An answer in its text.

    Attributes:
        ids: Token ids, the answer's masked.
        places: Where they are.
        answer: What they were.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    answer: tuple[int, ...]


class ClozeRanker(Ranker[list[Masked]]):
    """Scores answers by the probabilities of their tokens where the text has masks.

    An answer of several tokens has as many masks, all filled at once.
    """

    def row(self, prompt: Prompt, answers: Sequence[str]) -> list[Masked]:
        if not self.tokenizer.is_fast or self.tokenizer.mask_token_id is None:
            raise InputError("a cloze needs a fast tokenizer with a mask token")
        return [self._masked(prompt, answer) for answer in answers]

    def _masked(self, prompt: Prompt, answer: str) -> Masked:
        before = prompt.text + prompt.lead
        encoding: Any = self.tokenizer(
            before + answer + prompt.after, truncation=False, verbose=False, return_offsets_mapping=True
        )
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        first, last = len(before), len(before) + len(answer)
        places = tuple(
            n for n, (start, end) in enumerate(offsets) if start < last and end > max(first, start)
        )
        if not places:
            raise InputError(f"the answer {answer!r} has no token of its own")
        masked = list(ids)
        for place in places:
            masked[place] = int(self.tokenizer.mask_token_id)
        return Masked(tuple(masked), places, tuple(ids[place] for place in places))

    def longest(self, row: list[Masked]) -> int:
        return max(len(one.ids) for one in row)

    def scores(self, rows: Sequence[list[Masked]], keys: Sequence[Hashable]) -> list[list[Ranked]]:
        # Answers of as many tokens leave the same text behind, which is read once.
        texts = list(dict.fromkeys((one.ids, one.places) for row in rows for one in row))
        known: dict[tuple[tuple[int, ...], tuple[int, ...]], torch.Tensor] = {}
        for batch in in_batches([len(ids) for ids, _ in texts], _BATCH_TOKENS):
            chosen = [texts[number] for number in batch]
            inputs = self.tensor([ids for ids, _ in chosen], self.tokenizer.pad_token_id)
            mask = self.tensor([[1] * len(ids) for ids, _ in chosen], 0)
            with torch.inference_mode():
                logits = self.model(input_ids=inputs, attention_mask=mask)["logits"]
            for number, text in enumerate(chosen):
                known[text] = logits[number, list(text[1])].float().log_softmax(dim=1).cpu()
        return [[_score(known[one.ids, one.places], one.answer) for one in row] for row in rows]


def _score(logs: torch.Tensor, answer: Sequence[int]) -> Ranked:
    value = sum(float(logs[place, token]) for place, token in enumerate(answer))
    return Ranked(value, len(answer))
