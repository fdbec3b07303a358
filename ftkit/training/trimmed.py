"""The token embedding in training: of a large vocabulary, the rows that the training data use.

A classifier's data use a few thousand tokens of a vocabulary of 30,000 or 250,000. The others get no
gradient, and Adam, whose moments of them stay 0, does not move them: they only decay. Yet to clear their
gradient, to take its norm and to step through them is a sixth of a small model's step on a CPU, and their
moments are most of the memory that a multilingual one needs. So while a model trains, its embedding has the
rows that are used, and the others get their decay all at once when somebody wants to see them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ftkit.training.features import distinct_tokens
from ftkit.training.heads import Batch, Features, Objective

_WORTH = 0.5
"""Share of the vocabulary from which on the data use too much of it."""
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that leave a number without a gradient as it is, but for its decay."""


class TrimmedEmbedding:
    """An embedding that does without the rows that are never looked up, while it is trained.

    Args:
        embedding: The embedding.
        used: Numbers of the rows that are looked up in training, ascending, shape (used,).
    """

    def __init__(self, embedding: nn.Embedding, used: Tensor) -> None:
        self.embedding = embedding
        self.weight = embedding.weight
        self.padding_idx = embedding.padding_idx
        self.used = used
        self.part: nn.Parameter | None = None
        self._places = torch.empty(0)
        self._decay = 1.0

    @property
    def left_out(self) -> int:
        """How many weights are not trained."""
        return self.weight.numel() - self.copied

    @property
    def copied(self) -> int:
        """How many are, and are there twice."""
        return len(self.used) * self.embedding.embedding_dim

    @property
    def is_trimmed(self) -> bool:
        """Whether the embedding has only the rows in use right now."""
        return self.embedding.weight is self.part

    @contextmanager
    def trimmed(self) -> Iterator[None]:
        """Let the embedding have only the rows in use: they are its parameter."""
        weight = self.weight.detach()
        self.used = self.used.to(weight.device)
        self._places = torch.full((len(weight),), -1, device=weight.device)
        self._places[self.used] = torch.arange(len(self.used), device=weight.device)
        self.part = nn.Parameter(weight[self.used])
        hook = self.embedding.register_forward_pre_hook(self._renumber, with_kwargs=True)
        self._trim()
        try:
            yield
        finally:
            if self.is_trimmed:
                self._restore()
            hook.remove()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within `trimmed`, let the embedding have all its rows, to be read or written; else it has them."""
        if not self.is_trimmed:
            yield
            return
        self._restore()
        try:
            yield
        finally:
            self._trim()

    def _trim(self) -> None:
        assert self.part is not None
        self.part.data.copy_(self.weight.detach()[self.used])
        self.embedding.weight = self.part
        if self.padding_idx is not None:
            self.embedding.padding_idx = int(self._places[self.padding_idx])

    def _restore(self) -> None:
        assert self.part is not None
        with torch.no_grad():
            if self._decay != 1:
                self.weight.mul_(self._decay)
                self._decay = 1.0
            self.weight[self.used] = self.part
        self.embedding.weight = self.weight
        self.embedding.padding_idx = self.padding_idx

    def _renumber(self, _: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What the embedding is asked for, as rows of the part."""
        if not self.is_trimmed:
            return None
        if given:
            return (self._places[given[0]], *given[1:]), options
        return given, options | {"input": self._places[options["input"]]}

    # The optimizer ----------------------------------------------------------------------

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Note at each step what an optimizer takes off the weights that have no gradient."""

        def note(now: torch.optim.Optimizer, *_: Any) -> None:
            (its,) = (one for one in now.param_groups if any(p is self.part for p in one["params"]))
            self._decay *= 1 - its["lr"] * its["weight_decay"]

        optimizer.register_step_post_hook(note)

    def whole_states(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's `state_dict()` with states of all rows, as if all were trained."""

        def widened(state: Tensor) -> Tensor:
            found = state.new_zeros(self.weight.shape)
            found[self.used.to(state.device)] = state
            return found

        return self._changed(optimizer, optimizer.state_dict(), widened)

    def own_states(self, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> dict[str, Any]:
        """What `whole_states` gave, for this optimizer to load."""
        return self._changed(optimizer, states, lambda state: state[self.used.to(state.device)])

    def _changed(
        self, optimizer: torch.optim.Optimizer, states: dict[str, Any], change: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """A copy of an optimizer's states in which those of the embedding are changed."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        number = next(place for place, p in enumerate(parameters) if p is self.part)
        found = {**states, "state": copy.copy(states["state"])}
        if number in found["state"]:
            found["state"][number] = {
                name: change(value) if isinstance(value, Tensor) and value.dim() else value
                for name, value in found["state"][number].items()
            }
        return found


def trimmed_embedding(
    model: Any,
    features: Sequence[Features],
    objective: Objective,
    arguments: TrainingArguments,
    padding: int | None,
) -> TrimmedEmbedding | None:
    """A model's token embedding without what the training rows do not use; `None` where that would differ.

    Args:
        model: The model, loaded.
        features: The rows to learn from.
        objective: Whose rows they are.
        arguments: Arguments of the run.
        padding: The number of the token that rows are padded with.
    """
    embedding = model.get_input_embeddings()
    if not _stands_alone(model, embedding) or not _moves_nothing_else(arguments):
        return None
    if type(objective).vary is not Objective.vary:
        # What hides tokens puts others in their places, new ones each time.
        return None
    used = torch.from_numpy(distinct_tokens(features))
    others = [number for number in (padding, embedding.padding_idx) if number is not None]
    used = torch.cat([used, torch.tensor(others, dtype=used.dtype)]).unique()
    if len(used) >= _WORTH * embedding.num_embeddings or int(used.max()) >= embedding.num_embeddings:
        return None
    return TrimmedEmbedding(embedding, used)


def _stands_alone(model: Any, embedding: Any) -> bool:
    """Whether it is an embedding that is trained, and of which no other layer has the weights."""
    if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
        return False
    holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    usual = embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse
    return usual and holders[id(embedding.weight)] == 1


def _moves_nothing_else(arguments: TrainingArguments) -> bool:
    """Whether a step does nothing to weights without a gradient, but for a decay that is known."""
    # A step that the scaler of fp16 leaves out decays nothing.
    known = not (arguments.fp16 and arguments.weight_decay)
    return known and arguments.optim in _OPTIMIZERS and not arguments.torch_compile


def trims_as_whole(
    found: TrimmedEmbedding, model: nn.Module, batch: Batch, losses: Callable[[Batch], Tensor]
) -> bool:
    """Whether a model looks its tokens up in the embedding, and nowhere else: whether losses stay the same.

    Args:
        found: The model's embedding.
        model: The model, in any mode.
        batch: Training rows.
        losses: Gives the loss of each row of a batch.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = losses(batch)
            with found.trimmed():
                return bool(whole.any()) and torch.equal(losses(batch), whole)
    except Exception:  # noqa: BLE001
        # Any way in which an architecture does not bear it, or cannot be computed on a CPU.
        return False
    finally:
        model.train(training)
