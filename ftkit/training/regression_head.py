"""Regression heads: one number a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ftkit.records import Prediction, Record
from ftkit.training.heads import Encoded, Features, Objective, encoded_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RegressionHead(Objective):
    """The mean squared error of one number a row, as transformers' regression heads have it."""

    def encode(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Encoded:
        return encoded_texts(records, tokenizer, max_length, lambda target: target)

    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        return torch.tensor([row["labels"] for row in features], dtype=torch.float32)

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.float().squeeze(1) - labels) ** 2

    def row_counts(self, labels: Tensor) -> Tensor:
        return torch.ones(len(labels), device=labels.device)

    def decode(self, logits: Tensor, features: Sequence[Features]) -> list[Prediction]:
        return [Prediction(value) for value in logits.float().squeeze(1).tolist()]

    def predictions(
        self, records: Sequence[Record], encoded: Encoded, decoded: Sequence[Any]
    ) -> list[Prediction]:
        return list(decoded)
