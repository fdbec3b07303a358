"""Errors a user can cause or meet, each with the exit code the command line gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUG = 1
INTERRUPTED = 130
UNREAD = 141
"""What a shell reports of a tool that a closed pipe ended, as `head` closes one."""


class FtkitError(Exception):
    """An expected failure: what went wrong, where, and what to do next.

    Args:
        what: One sentence: what is wrong and, where it helps, what is allowed.
        where: `file:line`, a row, a column or a recipe key.
        hint: What the reader can do next.
    """

    exit_code = BUG

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}\n  {self.hint}" if self.hint else line


class UnreadError(Exception):
    """Whoever read the output has closed it, as `head` does: nothing is wrong, and nothing is left to do."""


class UsageError(FtkitError):
    """A wrong command, a wrong recipe, a refused combination, a run folder in use."""

    exit_code = 2


class InputError(FtkitError):
    """Data, a model, a dependency, the network or the disk is not as the recipe needs it."""

    exit_code = 3


class DivergedError(InputError):
    """Training met a loss or a gradient that is not finite."""


class GateError(FtkitError):
    """A score is on the wrong side of a gate."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a recipe: `where` is `file:line`, `key` the dotted path."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.what) if part)


class RecipeError(UsageError):
    """Everything that is wrong with a recipe, found in one go."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        super().__init__("\n".join(map(str, problems)), hint=hint)
        self.problems = tuple(problems)
