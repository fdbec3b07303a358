"""Language model heads: token losses, with logits computed only where a token is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ftkit.training.heads import IGNORED, Batch, Features, Objective
from ftkit.training.vocabulary import token_losses

Kind = Literal["decoder", "encoder", "encoder_decoder"]


@dataclass
class LanguageHead(Objective):
    """The next token of a decoder, a masked one of an encoder, or what an encoder-decoder writes.

    Its outputs are losses, not logits: shape (rows, positions), 0 where nothing is learned. A
    vocabulary is large, so the head sees only the hidden states of the positions that count.

    Args:
        kind: The family of the model.
        label_smoothing: Share of the probability spread over all tokens (Szegedy et al., 2016).
        packing: Whether training rows share sequences (decoders).
    """

    kind: Kind
    label_smoothing: float = 0.0
    packing: bool = field(default=False, kw_only=True)

    def collate_labels(self, features: Sequence[Features], width: int) -> Tensor:
        if self.kind == "encoder_decoder":
            width = max(len(row["labels"]) for row in features)
        rows = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in features]
        return torch.tensor(rows)

    @property
    def per_token(self) -> bool:
        return self.kind != "encoder_decoder"

    def outputs(self, model: nn.Module, inputs: Batch, labels: Tensor | None) -> Tensor:
        assert labels is not None, "a language model head scores known tokens"
        whole: Any = extract_model_from_parallel(model)
        if self.kind == "encoder_decoder":
            used = (labels != IGNORED).any(dim=0).nonzero()
            labels = labels[:, : int(used.max()) + 1 if len(used) else 1]
            inputs = {**inputs, "decoder_input_ids": shifted(labels, whole.config)}
        if self.kind == "decoder":
            # Rows are padded at the end, where no token before sees it; without a mask attention leaves out
            # what is to the right, instead of computing it and throwing it away. Where rows are packed,
            # transformers reads from the positions where each begins, but only without a mask; one of all
            # ones would silently let them see each other.
            inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        targets = labels[:, 1:] if self.kind == "decoder" else labels
        learned = targets != IGNORED
        losses = token_losses(
            model,
            inputs,
            learned,
            targets[learned],
            label_smoothing=self.label_smoothing if model.training else 0.0,
            **({} if self.kind == "encoder" else {"use_cache": False}),
        )
        return torch.zeros(learned.shape, device=losses.device).masked_scatter(learned, losses)

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum(dim=1)

    def row_counts(self, labels: Tensor) -> Tensor:
        targets = labels[:, 1:] if self.kind == "decoder" else labels
        return (targets != IGNORED).sum(dim=1).float()

    def decode(self, outputs: Tensor, features: Sequence[Features]) -> list[tuple[float, int]]:
        """The summed loss of each row, and how many tokens it is over."""
        first = 1 if self.kind == "decoder" else 0
        counts = [sum(label != IGNORED for label in row["labels"][first:]) for row in features]
        return list(zip(outputs.double().sum(dim=1).tolist(), counts, strict=True))


def shifted(labels: Tensor, config: Any) -> Tensor:
    """What a decoder reads to write `labels`: its start token, then each token but the last."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    read = torch.cat([start, labels[:, :-1]], dim=1)
    return read.masked_fill(read == IGNORED, config.pad_token_id)
