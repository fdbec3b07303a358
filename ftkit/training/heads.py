"""Heads: from records to features, from logits to losses and predictions; sequence heads here.

An objective works row by row: it gives every row's summed loss and the number of items it
counts for, so that the engine can divide by the count of the whole optimizer batch, however
that batch is cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ftkit.records import LabelScores, Prediction, Record
from ftkit.training.features import FeatureTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Features: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Tensor]

IGNORED = -100
"""The label of a position where nothing is learned."""
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a model sees of records: one row of features for each, or several for a long one.

    Attributes:
        features: The rows.
        owners: Number of the record that each row belongs to, ascending.
        truncated: How many records were cut at the longest input.
        notes: What else should be known.
    """

    features: Sequence[Features]
    owners: Sequence[int] | NDArray[numpy.int64]
    truncated: int = 0
    notes: tuple[str, ...] = ()


class Objective(ABC):
    """What a head's logits mean."""

    packing: bool = False
    """Whether training rows share sequences."""

    @property
    def per_token(self) -> bool:
        """Whether labels have a column for each token of the inputs, and are trimmed with them."""
        return False

    @property
    def joins_records(self) -> bool:
        """Whether a row can hold several records, so that they must be encoded together."""
        return False

    @abstractmethod
    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        """Token ids (and `labels`, where the record has a target) of every record."""

    def training_rows(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        """The same to learn from; `vary` is applied to each row when it is used."""
        return self.encode(records, tokenizer, max_length)

    def vary(self, row: Features, seed: Sequence[int]) -> Features:
        """A training row as it is seen once; most heads always see the same.

        Args:
            row: Features of `training_rows`.
            seed: The seed of the run, the epoch and the number of the row.
        """
        return row

    @abstractmethod
    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        """The labels of a batch as one tensor with a row each; inputs are padded to `width` tokens."""

    def outputs(self, model: nn.Module, inputs: Batch, labels: Tensor | None) -> Tensor:
        """What the model says of a batch, a row each: logits, unless the objective makes less of them."""
        return model(**inputs)["logits"]

    @abstractmethod
    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed loss of every row of outputs, shape (rows,), fp32."""

    @abstractmethod
    def row_counts(self, labels: Tensor) -> Tensor:
        """What every row adds to the denominator of the mean loss, shape (rows,), fp32."""

    @abstractmethod
    def decode(self, logits: Tensor, features: Sequence[Features]) -> list[Any]:
        """What the outputs say of each row."""

    @abstractmethod
    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        """One prediction a record, from what was decoded for its rows."""

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Complete the tokenizer, or refuse one that this head cannot work with; most take any.

        Raises:
            UsageError: With the reason.
        """
        return


@dataclass(frozen=True)
class SequenceHead(Objective):
    """One vector of logits a row: softmax over labels, or a sigmoid for each.

    Args:
        labels: Label names in the order of the logits.
        multi_label: Whether labels are independent.
        threshold: With `multi_label`, the probability from which a label is predicted.
        weights: Weight of each label (of its positive cases, with `multi_label`).
        label_smoothing: Share of the probability spread over all labels (Szegedy et al., 2016).
    """

    labels: tuple[str, ...]
    multi_label: bool = False
    threshold: float = 0.5
    weights: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        number = {name: index for index, name in enumerate(self.labels)}
        return encoded_texts(
            records, tokenizer, max_length, lambda target: self._label_vector(target, number)
        )

    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        values = [row["labels"] for row in features]
        return torch.tensor(values, dtype=torch.float32 if self.multi_label else torch.long)

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        weights = torch.tensor(self.weights, device=logits.device) if self.weights else None
        if self.multi_label:
            losses = functional.binary_cross_entropy_with_logits(
                logits, labels, pos_weight=weights, reduction="none"
            )
            return losses.sum(dim=1)
        return functional.cross_entropy(
            logits, labels, weight=weights, reduction="none", label_smoothing=self.label_smoothing
        )

    def row_counts(self, labels: Tensor) -> Tensor:
        if self.multi_label:
            return torch.full((len(labels),), float(labels.shape[1]), device=labels.device)
        if self.weights:
            return torch.tensor(self.weights, device=labels.device)[labels]
        return torch.ones(len(labels), device=labels.device)

    def decode(self, logits: Tensor, features: Sequence[Features]) -> list[Prediction]:
        logits = logits.float()
        probabilities = (logits.sigmoid() if self.multi_label else logits.softmax(dim=1)).tolist()
        places = {name: place for place, name in enumerate(self.labels)}
        predictions = []
        for row in probabilities:
            scores = LabelScores(places, row)
            if self.multi_label:
                chosen = tuple(name for name, score in scores.items() if score >= self.threshold)
                predictions.append(Prediction(chosen, scores))
            else:
                predictions.append(Prediction(max(scores, key=scores.__getitem__), scores))
        return predictions

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        return list(decoded)

    def _label_vector(self, target: Any, number: dict[str, int]) -> Any:
        if not self.multi_label:
            return number[target]
        vector = [0.0] * len(self.labels)
        for name in target:
            vector[number[name]] = 1.0
        return vector


def encoded_texts(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label: Callable[[Any], Any],
) -> Encoded:
    """A row of features for each record; `label` makes `labels` of a target."""
    features = FeatureTable()
    truncated = 0
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        rows, cut = tokenize(chunk, tokenizer, max_length)
        truncated += cut
        for record, row in zip(chunk, rows, strict=True):
            if record.target is not None:
                row["labels"] = label(record.target)
            features.append(row)
    return Encoded(features, range(len(features)), truncated)


def tokenize(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Features], int]:
    """Token ids of every record, and how many were cut at `max_length`.

    Truncation and padding are always said: a tokenizer file can carry settings of its own
    (those of sentence-transformers cut at 128 and pad to it).
    """
    pairs = [record.text_pair for record in records]
    given = [record.text for record in records], pairs if pairs and pairs[0] is not None else None
    encoding = tokenizer(*given, truncation=True, max_length=max_length, padding=False)
    rows = [
        {name: encoding[name][index] for name in tokenizer.model_input_names if name in encoding}
        for index in range(len(records))
    ]
    if encoding.encodings is not None:
        return rows, sum(bool(one.overflowing) for one in encoding.encodings)
    # Tokenizers in Python do not tell what they have left out.
    whole = tokenizer(*given, truncation=False, padding=False, verbose=False)
    return rows, sum(len(ids) > max_length for ids in whole["input_ids"])
