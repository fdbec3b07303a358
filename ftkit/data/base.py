"""What a file format is: a suffix, and rows with their place in the file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from ftkit.component import Component

Row: TypeAlias = tuple[str, dict[Any, Any]]
"""Where the row stands (`train.csv:12`) and its values by column name (or column number)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a text file.

    Attributes:
        encoding: Its encoding.
        header: Whether its first line names the columns.
        stray_lines: Whether a line without a tag is an `error` or to `skip`.
        delimiter: What stands between the values of a csv file; by default a comma.
    """

    encoding: str = "utf-8"
    header: bool = True
    stray_lines: str = "error"
    delimiter: str | None = None


class Format(Component):
    """A file format that data can come in."""

    suffixes: ClassVar[tuple[str, ...]]
    numbered: ClassVar[bool] = False
    """Whether columns can be given by their number."""

    @abstractmethod
    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        """Yield every row of the file in order.

        Raises:
            InputError: The file does not hold what the format says, with the line.
        """
