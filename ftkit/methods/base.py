"""What a method is: the way from a task and a model to an estimator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ftkit.component import Component

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ftkit.training.estimator import TrainedEstimator
    from ftkit.training.setup import Loaded, Setup


class Method(Component):
    """A way to solve a task with a pretrained model."""

    trains: ClassVar[bool] = True
    """Whether `ftkit finetune` applies; a method that only prompts is evaluated directly."""
    adapters: ClassVar[bool] = False
    """Whether a run saves adapters that need their base model."""

    def estimator(self, setup: Setup) -> TrainedEstimator:
        """The estimator that solves the task this way."""
        from ftkit.training.estimator import TrainedEstimator

        return TrainedEstimator(setup, adapt=self.adapt, restore=lambda folder: self.restore(setup, folder))

    def adapt(self, loaded: Loaded) -> nn.Module:
        """The loaded model with exactly the right parameters trainable."""
        return loaded.model

    def restore(self, setup: Setup, folder: Path) -> PreTrainedModel:
        """The model that a run saved, ready to predict."""
        return setup.load_finished(folder)
