"""Chat: a conversation with a finished run."""

from __future__ import annotations

from collections.abc import Callable

from ftkit.errors import UsageError
from ftkit.estimator import finished_estimator
from ftkit.records import Record, Turn
from ftkit.run import Run
from ftkit.tasks.reading import text_of


class Chat:
    """A conversation that a run answers, by the template that it was trained with.

    Args:
        run: A finished run of the task `instruction`.
        system: The system prompt; by default that of the recipe.

    Raises:
        UsageError: The run is of another task.
    """

    def __init__(self, run: Run, system: str | None = None) -> None:
        from ftkit.training.estimator import TrainedEstimator

        if run.recipe.task.type != "instruction":
            raise UsageError(
                f"the run was trained for {run.recipe.task.type}, not to follow instructions",
                where=str(run.folder),
                hint="use ftkit predict",
            )
        estimator = finished_estimator(run)
        assert isinstance(estimator, TrainedEstimator)
        self._estimator = estimator
        self._writer = estimator.writer()
        prompt = system or run.recipe.task.model_dump().get("system")
        self.turns: list[Turn] = [Turn("system", prompt)] if prompt else []

    def say(self, message: str, show: Callable[[str], None] = lambda piece: None) -> str:
        """The answer to a message; the conversation goes on with both.

        Where the conversation no longer fits, its beginning is left out.

        Args:
            message: What the user says.
            show: Gets each piece of the answer as soon as it is written.
        """
        asked = text_of(message, "message", "")
        turns = (*self.turns, Turn("user", asked))
        (prompt,) = self._estimator.prompts([Record(text=asked, turns=turns)])
        answer = self._writer.stream(prompt, show)
        self.turns = [*turns, Turn("assistant", answer)]
        return answer
