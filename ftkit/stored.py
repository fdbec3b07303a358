"""What may be too large for memory: rows and numbers that are kept in files without a name."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, overload

from ftkit.errors import InputError
from ftkit.late import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = TypeVar("Row")

_LARGE = Path("/var/tmp")  # noqa: S108  (the file has no name that others could take)
_ROWS_READ = 100
_NUMBERS_HELD = 2**20


class Scratch:
    """A file without a name that is only added to; its space is free again when nothing holds it.

    It is in `TMPDIR`, or in `/var/tmp`: on many systems `/tmp` is memory.

    Raises:
        InputError: The disk is full, or cannot be written.
    """

    def __init__(self) -> None:
        folder = os.environ.get("TMPDIR") or (_LARGE if _LARGE.is_dir() else None)
        with _explained(folder):
            self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._folder = folder
        self._size = 0

    def add(self, content: bytes) -> int:
        """Write at the end; returns where that is now."""
        with _explained(self._folder):
            self.file.write(content)
        self._size += len(content)
        return self._size

    def flush(self) -> None:
        """Let all that was added be read."""
        with _explained(self._folder):
            self.file.flush()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; processes that share the file do not disturb each other."""
        return os.pread(self.file.fileno(), end - start, start)


class Stored(Sequence[Row]):
    """Rows in a file, in the order in which they came; each is read when it is asked for.

    Args:
        rows: Where they come from; taken one at a time.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._file = Scratch()
        self._ends = array("q", [0])
        for row in rows:
            self._ends.append(self._file.add(pickle.dumps(row, pickle.HIGHEST_PROTOCOL)))
        self._file.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        chosen = range(len(self))[number]
        if isinstance(chosen, int):
            return self._between(chosen, chosen + 1)[0]
        if chosen.step == 1:
            return self._between(chosen.start, max(chosen.start, chosen.stop))
        return [self[one] for one in chosen]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _ROWS_READ):
            yield from self[start : start + _ROWS_READ]

    def _between(self, first: int, end: int) -> list[Row]:
        ends = self._ends[first : end + 1]
        content = memoryview(self._file.read(ends[0], ends[-1]))
        places = [place - ends[0] for place in ends]
        # Nobody else can write to a file without a name: what is read was written above.
        return [pickle.loads(content[a:b]) for a, b in pairwise(places)]  # noqa: S301


class Numbers:
    """Numbers of one kind that are only added to: a few in memory, many in a file that is mapped to be read.

    Args:
        kind: Their type, as `array` names it.
    """

    def __init__(self, kind: str) -> None:
        self._held: array[Any] = array(kind)
        self._file: Scratch | None = None
        self._filed = 0
        self._mapped: NDArray[Any] | None = None

    def append(self, number: float) -> None:
        """Add a number."""
        self._held.append(number)
        self._make_room()

    def extend(self, numbers: list[Any]) -> None:
        """Add numbers."""
        self._held.fromlist(numbers)
        self._make_room()

    @property
    def kind(self) -> numpy.dtype[Any]:
        """Their type, as numpy has it."""
        return numpy.dtype(self._held.typecode)

    def __len__(self) -> int:
        return self._filed + len(self._held)

    def __getitem__(self, place: Any) -> Any:
        return self.whole()[place]

    def __reduce__(self) -> tuple[Any, ...]:
        """Processes that are not forks get the numbers themselves."""
        return numpy.array, (self.whole(),)

    def parts(self) -> Iterator[NDArray[Any]]:
        """All numbers in order, a part at a time."""
        if self._file is not None:
            self._file.flush()
            size = _NUMBERS_HELD * self._held.itemsize
            end = self._filed * self._held.itemsize
            for start in range(0, end, size):
                yield numpy.frombuffer(self._file.read(start, min(start + size, end)), self.kind)
        if self._held:
            yield numpy.array(self._held)

    def whole(self) -> NDArray[Any]:
        """All numbers as one array, which stays on the disk where they are many."""
        if self._file is None:
            return numpy.asarray(self._held)
        if self._held or self._mapped is None:
            self._move(self._file)
            # A view of a plain array: slices of a memmap are memmaps, which are slow to make.
            self._mapped = numpy.asarray(numpy.memmap(self._file.file, self.kind, "r"))
        return self._mapped

    def _make_room(self) -> None:
        if len(self._held) >= _NUMBERS_HELD:
            self._file = self._file or Scratch()
            self._move(self._file)

    def _move(self, file: Scratch) -> None:
        file.add(self._held.tobytes())
        file.flush()
        self._filed += len(self._held)
        self._held = array(self._held.typecode)
        self._mapped = None


@contextmanager
def _explained(folder: str | Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"a temporary file cannot be written: {error.strerror}",
            where=str(folder or tempfile.gettempdir()),
            hint="make room, or let TMPDIR name a folder on another disk",
        ) from None
