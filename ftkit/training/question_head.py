"""Question heads: where in a context the answer to a question begins and ends."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftkit.errors import InputError, UsageError
from ftkit.records import Prediction, Record, Writing
from ftkit.training.features import FeatureTable
from ftkit.training.heads import Batch, Encoded, Features, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000


@dataclass(frozen=True)
class QuestionHead(Objective):
    """Logits for the first and the last token of the answer (Devlin et al., 2019, section 4.2).

    A context too long for the model is read in overlapping windows, the question before each. A window
    without the answer points at its first token, which stands for none.

    Args:
        stride: Tokens that neighbouring windows share; `None` for a quarter of the longest input.
        longest: The longest answer in tokens.
        answerable: Whether every question has an answer; else a window may say that there is none.
    """

    stride: int | None = None
    longest: int = 30
    answerable: bool = True

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "this task needs a fast tokenizer, which tells where in the text each token stands",
                hint="take a checkpoint with a tokenizer.json",
            )
        if self._longest_question(tokenizer, max_length) < 1:
            raise UsageError(
                f"task.stride: {self._stride(max_length)} tokens are shared by windows of {max_length}: that "
                "leaves no room for a question",
                hint="choose a smaller stride, or raise model.max_length",
            )

    # From records to features -----------------------------------------------------------

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        features = FeatureTable()
        owners = array("q")
        truncated = 0
        for start in range(0, len(records), _CHUNK):
            chunk = records[start : start + _CHUNK]
            questions, cut = self._questions(chunk, tokenizer, max_length)
            truncated += cut
            encoding: Any = tokenizer(
                questions,
                [record.text_pair or "" for record in chunk],
                truncation="only_second",
                max_length=max_length,
                stride=self._stride(max_length),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                padding=False,
            )
            names = [name for name in tokenizer.model_input_names if name in encoding]
            for row, number in enumerate(encoding["overflow_to_sample_mapping"]):
                found: Features = {name: encoding[name][row] for name in names}
                context = _places(encoding, row)
                found["context"] = [value for token, place in context.items() for value in (token, *place)]
                record = chunk[number]
                if isinstance(record.target, Writing):
                    found["labels"] = _labels(context, record.target)
                features.append(found)
                owners.append(start + number)
        return Encoded(features, owners, truncated)

    def training_rows(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        """The same, of answers that a head can learn.

        Raises:
            InputError: None of them stands in its context.
        """
        answers = [record.target for record in records if isinstance(record.target, Writing)]
        known = [answer for answer in answers if answer.text]
        if known and all(answer.start < 0 for answer in known):
            raise InputError(
                "no answer stands in its context, so a head has nothing to point at",
                where=records[0].where,
                hint="copy answers letter by letter; a model writes other ones with task.formulation: text",
            )
        return self.encode(records, tokenizer, max_length)

    def _questions(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> tuple[list[str], int]:
        """The questions, long ones cut at their end, and how many of them are."""
        longest = self._longest_question(tokenizer, max_length)
        encoded: Any = tokenizer(
            [record.text for record in records],
            add_special_tokens=False,
            truncation=True,
            max_length=longest + 1,
            return_offsets_mapping=True,
            padding=False,
        )
        questions = [
            record.text if len(offsets) <= longest else record.text[: offsets[longest - 1][1]]
            for record, offsets in zip(records, encoded["offset_mapping"], strict=True)
        ]
        return questions, sum(len(offsets) > longest for offsets in encoded["offset_mapping"])

    def _longest_question(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        """Tokens of a question: half of the input, and so few that windows of the context go on by one."""
        special = tokenizer.num_special_tokens_to_add(pair=True)
        return min(max_length // 2, max_length - special - self._stride(max_length) - 1)

    def _stride(self, max_length: int) -> int:
        return max_length // 4 if self.stride is None else self.stride

    # Losses -----------------------------------------------------------------------------

    def outputs(self, model: nn.Module, inputs: Batch, labels: Tensor | None) -> Tensor:
        found = model(**inputs)
        return torch.stack([found["start_logits"], found["end_logits"]], dim=2)

    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        """First and last token of the answer, and how many tokens the window has."""
        return torch.tensor([[*row["labels"], len(row["input_ids"])] for row in features])

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of both ends' losses, as transformers' heads have it of a row without padding.

        Padding cannot be an answer: with it, a loss would hang on the longest row of the batch.
        """
        places = torch.arange(logits.shape[1], device=logits.device)
        padding = places >= labels[:, 2:]
        logits = logits.float().masked_fill(padding[..., None], float("-inf"))
        ends = [functional.cross_entropy(logits[..., n], labels[:, n], reduction="none") for n in (0, 1)]
        return (ends[0] + ends[1]) / 2

    def row_counts(self, labels: Tensor) -> Tensor:
        return torch.ones(len(labels), device=labels.device)

    # Predictions ------------------------------------------------------------------------

    def decode(
        self, logits: Tensor, features: Sequence[Features]
    ) -> list[tuple[float, float, tuple[int, int]]]:
        """The best answer of each window: its score, that of none, and its characters."""
        return [
            self._best(row.float(), _places_of(found["context"]))
            for row, found in zip(logits, features, strict=True)
        ]

    def _best(
        self, logits: Tensor, context: dict[int, tuple[int, int]]
    ) -> tuple[float, float, tuple[int, int]]:
        none = float(logits[0].sum())
        if not context:
            return float("-inf"), none, (0, 0)
        tokens = list(context)
        starts, ends = logits[tokens, 0], logits[tokens, 1]
        # All spans at once: an answer ends where it begins or after that, and is not too long.
        sums = starts[:, None] + ends[None, :]
        allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(self.longest - 1)
        best = int(sums.masked_fill(~allowed, float("-inf")).argmax())
        first, last = divmod(best, len(tokens))
        return float(sums[first, last]), none, (context[tokens[first]][0], context[tokens[last]][1])

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        """The best answer of all windows of a record; none where every window prefers that."""
        windows: list[list[Any]] = [[] for _ in records]
        for owner, found in zip(encoded.owners, decoded, strict=True):
            windows[owner].append(found)
        predictions = []
        for record, found in zip(records, windows, strict=True):
            score, _, (start, end) = max(found)
            none = min(window[1] for window in found)
            context = record.text_pair or ""
            # Some tokenizers count the space before a word as part of its token.
            answer = context[start:end].strip()
            if not answer or (not self.answerable and none > score):
                predictions.append(Prediction(Writing("")))
            else:
                predictions.append(Prediction(Writing(answer, start=context.index(answer, start))))
        return predictions


def _places(encoding: Any, row: int) -> dict[int, tuple[int, int]]:
    """The tokens of a window that are of the context, with the characters of each."""
    sequences = encoding.sequence_ids(row)
    offsets = encoding["offset_mapping"][row]
    return {
        token: tuple(place)
        for token, (sequence, place) in enumerate(zip(sequences, offsets, strict=True))
        if sequence == 1 and place[1] > place[0]
    }


def _places_of(numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """The same from plain numbers: of each token its own, and those of its first character and its end."""
    return {token: (start, end) for token, start, end in zip(*[iter(numbers)] * 3, strict=True)}


def _labels(context: dict[int, tuple[int, int]], answer: Writing) -> list[int]:
    """First and last token of the answer; the first of all where it is not whole in this window."""
    start, end = answer.start, answer.start + len(answer.text)
    if start < 0 or not context:
        return [0, 0]
    inside = [token for token, (first, last) in context.items() if first < end and last > start]
    whole = inside and context[inside[0]][0] <= start and context[inside[-1]][1] >= end
    return [inside[0], inside[-1]] if whole else [0, 0]
