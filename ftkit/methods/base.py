"""What a method is: the way from a task and a model to an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ftkit.component import Component

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ftkit.training.setup import Estimator, Head, Loaded, Setup


class Method(Component):
    """A way to solve a task with a pretrained model."""

    trains: ClassVar[bool] = True
    """Whether `ftkit finetune` applies; a method that only prompts is evaluated directly."""
    adapters: ClassVar[bool] = False
    """Whether a run saves adapters that need their base model."""
    path_keys: ClassVar[tuple[str, ...]] = ()
    """The keys whose values may be paths."""

    @property
    def families(self) -> tuple[str, ...] | None:
        """The families it works with; `None` for all."""
        return None

    def problems(
        self, task: str, asked_by: Sequence[str], fields: Sequence[str], *, same: bool
    ) -> Iterator[tuple[str, str]]:
        """What does not go with the task: the key, and what is wrong.

        Args:
            task: Its type.
            asked_by: How a prompt can ask for its answer.
            fields: What a prompt's template can name.
            same: Whether all rows have the same candidates.
        """
        yield from ()

    def head(self, head: Head) -> Head:
        """The output layer it needs; by default the task's."""
        return head

    def estimator(self, setup: Setup) -> Estimator:
        """The estimator that solves the task this way."""
        from ftkit.training.estimator import TrainedEstimator

        return TrainedEstimator(setup, adapt=self.adapt, restore=lambda folder: self.restore(setup, folder))

    def adapt(self, loaded: Loaded) -> nn.Module:
        """The loaded model with exactly the right parameters trainable."""
        return loaded.model

    def restore(self, setup: Setup, folder: Path) -> PreTrainedModel:
        """The model that a run saved, ready to predict; what was frozen requires no gradient."""
        return setup.load_finished(folder)
