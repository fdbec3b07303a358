"""Token heads: a vector of logits a token, read at the first token of each word."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ftkit.errors import UsageError
from ftkit.records import Entities, Prediction, Record
from ftkit.tagging import OUTSIDE, bio_tags, chunks
from ftkit.training.features import FeatureTable
from ftkit.training.heads import IGNORED, Encoded, Features, Objective
from ftkit.training.windows import window_of, windows
from ftkit.words import span_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
Probabilities = NDArray[numpy.float32]


@dataclass(frozen=True)
class TokenHead(Objective):
    """A softmax over tags for the first token of each word.

    A text longer than the model goes through overlapping windows. Each word is learned, and
    predicted, in the one window that sees most context around it (`window_of`); entities are put
    together after that, from the tags of all words, so no window's edge cuts one.

    Args:
        tags: Tag names in the order of the logits: O, then B- and I- of every type, or I- alone where the
            data does not tell neighbouring entities of one type apart.
        stride: Tokens that neighbouring windows share; `None` for a quarter of a window.
        constrained: Whether to predict the likeliest sequence of tags in which no I- stands after O
            or another type, rather than the likeliest tag of each word.
        label_smoothing: Share of the probability spread over all tags.
    """

    tags: tuple[str, ...]
    stride: int | None = None
    constrained: bool = False
    label_smoothing: float = 0.0

    @property
    def per_token(self) -> bool:
        return True

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                f"the tokenizer {type(tokenizer).__name__} does not tell which characters a token stands "
                "for, so words cannot be found again",
                hint="take a model with a fast tokenizer (one that has a tokenizer.json)",
            )
        before, after = special_tokens(tokenizer)
        size = max_length - len(before) - len(after)
        if size <= (stride := self._stride(size)):
            raise UsageError(
                f"task.stride: {stride} tokens are shared by windows of {size}",
                hint="choose a smaller stride",
            )

    # From records to features -----------------------------------------------------------

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        specials = special_tokens(tokenizer)
        size = max_length - sum(map(len, specials))
        features = FeatureTable()
        owners = array("q")
        long = unseen = crossed = 0
        for number, (record, ids, firsts) in enumerate(_tokenized(records, tokenizer)):
            cuts = windows(len(ids), size, self._stride(size))
            rows = self._rows(record, ids, firsts, cuts, specials)
            features.extend(_with_model_inputs(row, tokenizer) for row in rows)
            owners.extend([number] * len(rows))
            unseen += firsts.count(None)
            if len(rows) > 1:
                long += 1
                crossed += _crossing(record, rows)
        return Encoded(features, owners, notes=tuple(_notes(len(records), size, long, unseen, crossed)))

    def _rows(
        self,
        record: Record,
        ids: Sequence[int],
        firsts: Sequence[int | None],
        cuts: list[tuple[int, int]],
        specials: tuple[list[int], list[int]],
    ) -> list[Features]:
        """A row of features a window, each with the words that are read there."""
        before, after = specials
        number = {tag: index for index, tag in enumerate(self.tags)}
        if self._inside_only:
            number |= {f"B-{tag[2:]}": index for tag, index in number.items() if tag != OUTSIDE}
        target = record.target if isinstance(record.target, Entities) else None
        rows: list[Features] = [
            {"input_ids": [*before, *ids[start:end], *after], "words": [], "positions": []}
            for start, end in cuts
        ]
        for word, first in enumerate(firsts):
            if first is not None:
                window = window_of(first, cuts)
                rows[window]["words"].append(word)
                rows[window]["positions"].append(first - cuts[window][0] + len(before))
        # A window without a word teaches nothing; a record keeps one, so that it has a prediction.
        rows = [row for row in rows if row["words"]] or rows[:1]
        if target:
            for row in rows:
                row["labels"] = [IGNORED] * len(row["input_ids"])
                for word, position in zip(row["words"], row["positions"], strict=True):
                    row["labels"][position] = number[target.tags[word]]
        return rows

    def _stride(self, size: int) -> int:
        return size // 4 if self.stride is None else self.stride

    # Losses -----------------------------------------------------------------------------

    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        return torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in features])

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(
            logits.float().transpose(1, 2),
            labels,
            reduction="none",
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
        )
        return losses.sum(dim=1)

    def row_counts(self, labels: Tensor) -> Tensor:
        return (labels != IGNORED).sum(dim=1).float()

    # From logits to predictions ---------------------------------------------------------

    def decode(self, logits: Tensor, features: Sequence[Features]) -> list[Probabilities]:
        """Probability of every tag for the words of each row, shape (words, tags)."""
        return [
            logits[number, row["positions"]].float().softmax(dim=1).numpy()
            for number, row in enumerate(features)
        ]

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        outside = numpy.zeros(len(self.tags), dtype=numpy.float32)
        outside[0] = 1.0
        rows = groupby(zip(encoded.owners, encoded.features, decoded, strict=True), key=lambda row: row[0])
        predictions = []
        for record, (_, parts) in zip(records, rows, strict=True):
            # A word without tokens is in no window, and gets O.
            probabilities = numpy.tile(outside, (len(record.words), 1))
            seen = numpy.zeros(len(record.words), dtype=bool)
            for _, row, part in parts:
                probabilities[row["words"]] = part
                seen[row["words"]] = True
            predictions.append(self._prediction(record, probabilities, seen))
        return predictions

    def _prediction(
        self, record: Record, probabilities: Probabilities, seen: NDArray[numpy.bool_]
    ) -> Prediction:
        words = numpy.flatnonzero(seen)
        best = numpy.zeros(len(seen), dtype=int)
        if len(words):
            read = probabilities[words]
            best[words] = self._best(read)
        sure = probabilities[numpy.arange(len(best)), best]
        tags = _bridged([self.tags[number] for number in best], seen.tolist())
        if self._inside_only:
            tags = bio_tags(chunks(tags), len(tags))
        spans = tuple(
            span_of((start, end, kind), record.words, score=float(sure[start:end].mean()))
            for start, end, kind in chunks(tags)
        )
        return Prediction(Entities(spans, tags, record.text, record.words))

    def _best(self, read: Probabilities) -> NDArray[numpy.int64]:
        """The tags of words, by their numbers; without a B- any I- may begin an entity."""
        if self.constrained and not self._inside_only:
            return likeliest_legal(read, self.tags)
        return read.argmax(axis=1)

    @property
    def _inside_only(self) -> bool:
        return not any(tag.startswith("B-") for tag in self.tags)


def _bridged(tags: Sequence[str], seen: Sequence[bool]) -> tuple[str, ...]:
    """Words without tokens inside an entity belong to it; elsewhere they are O.

    >>> _bridged(["B-PER", "O", "I-PER", "O"], [True, False, True, False])
    ('B-PER', 'I-PER', 'I-PER', 'O')
    """
    bridged = list(tags)
    after = OUTSIDE
    for number in range(len(tags) - 1, -1, -1):
        if seen[number]:
            after = tags[number]
        elif after.startswith("I-"):
            before = next((tags[n] for n in range(number - 1, -1, -1) if seen[n]), OUTSIDE)
            bridged[number] = after if before[2:] == after[2:] else OUTSIDE
    return tuple(bridged)


def likeliest_legal(probabilities: Probabilities, tags: Sequence[str]) -> NDArray[numpy.int64]:
    """The likeliest sequence of BIO tags without an I- after O or another type (Viterbi, 1967).

    Args:
        probabilities: Shape (words, tags).
        tags: Tag names; O is among them.

    Returns:
        Tag numbers, shape (words,).
    """
    forbidden = numpy.array(
        [[to.startswith("I-") and (of == OUTSIDE or of[2:] != to[2:]) for to in tags] for of in tags]
    )
    steps = numpy.where(forbidden, -numpy.inf, 0.0)
    with numpy.errstate(divide="ignore"):
        logs = numpy.log(probabilities.astype(float))
    best = logs[0] + steps[tags.index(OUTSIDE)]
    came_from = []
    for log in logs[1:]:
        scores = best[:, None] + steps
        came_from.append(scores.argmax(axis=0))
        best = scores.max(axis=0) + log
    path = [int(best.argmax())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return numpy.array(path[::-1])


def _tokenized(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Record, list[int], list[int | None]]]:
    """Token ids of each text without special tokens, and the first token of each of its words."""
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        encoding = tokenizer(
            # BERT's tokenizer drops some white space as control characters, which would join words.
            [re.sub(r"\s", " ", record.text) for record in chunk],
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=False,
            padding=False,
            verbose=False,
        )
        for record, ids, offsets in zip(
            chunk, encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            yield record, ids, first_tokens(record.words, offsets)


def first_tokens(words: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The first token that overlaps each word and is not the first of the word before it.

    >>> first_tokens([(0, 3), (4, 9), (9, 10)], [(0, 3), (4, 6), (6, 9), (9, 10)])
    [0, 1, 3]
    >>> first_tokens([(0, 1), (1, 2)], [(0, 2)])
    [0, None]
    """
    firsts: list[int | None] = []
    token = 0
    for start, end in words:
        while token < len(offsets) and (offsets[token][1] <= start or offsets[token][0] == offsets[token][1]):
            token += 1
        if token < len(offsets) and offsets[token][0] < end:
            firsts.append(token)
            token += 1
        else:
            firsts.append(None)
    return firsts


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    encoding = tokenizer("a", return_special_tokens_mask=True, truncation=False, padding=False)
    ids, special = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    text = [position for position, is_special in enumerate(special) if not is_special]
    return ids[: text[0]], ids[text[-1] + 1 :]


def _with_model_inputs(row: Features, tokenizer: PreTrainedTokenizerBase) -> Features:
    length = len(row["input_ids"])
    if "attention_mask" in tokenizer.model_input_names:
        row["attention_mask"] = [1] * length
    if "token_type_ids" in tokenizer.model_input_names:
        row["token_type_ids"] = [0] * length
    return row


def _crossing(record: Record, rows: Sequence[Features]) -> int:
    """How many entities have words in more than one window."""
    if not isinstance(record.target, Entities):
        return 0
    window = {word: number for number, row in enumerate(rows) for word in row["words"]}
    entities = chunks(record.target.tags)
    return sum(len({window.get(word) for word in range(start, end)}) > 1 for start, end, _ in entities)


def _notes(rows: int, size: int, long: int, unseen: int, crossed: int) -> Iterator[str]:
    if long:
        entities = f"; {crossed} entities lie on the border of two" if crossed else ""
        yield f"{long} of {rows} rows are longer than {size} tokens and go through windows{entities}"
    if unseen:
        yield f"{unseen} words have no token of their own: they get O"
