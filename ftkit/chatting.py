"""Chat: a conversation with a finished run."""

from __future__ import annotations

from collections.abc import Callable

from ftkit.errors import UsageError
from ftkit.estimator import finished_estimator
from ftkit.records import Record, Turn
from ftkit.run import Run
from ftkit.tasks.reading import text_of


class Chat:
    """A conversation that a run answers, by the template that it was trained or is prompted with.

    Args:
        run: A finished run of the task `instruction`.
        system: The system prompt; by default that of the recipe.

    Raises:
        UsageError: The run is of another task, or its method cannot talk.
    """

    def __init__(self, run: Run, system: str | None = None) -> None:
        from ftkit.training.setup import Talks

        task, method = run.recipe.task, run.recipe.method
        if not task.converses:
            raise UsageError(
                f"the run is for {task.type}, not to follow instructions",
                where=str(run.folder),
                hint="use ftkit predict",
            )
        estimator = finished_estimator(run)
        if not isinstance(estimator, Talks):
            raise UsageError(
                f"a run of method {method.type} cannot talk", where=str(run.folder), hint="use ftkit predict"
            )
        self._answer = estimator.talk()
        self.turns = task.opening(system)

    def say(self, message: str, show: Callable[[str], None] = lambda piece: None) -> str:
        """The answer to a message; the conversation goes on with both.

        Where the conversation no longer fits, its beginning is left out.

        Args:
            message: What the user says.
            show: Gets each piece of the answer as soon as it is written.
        """
        asked = text_of(message, "message", "")
        turns = (*self.turns, Turn("user", asked))
        answer = self._answer(Record(text=asked, turns=turns), show)
        self.turns = [*turns, Turn("assistant", answer)]
        return answer
