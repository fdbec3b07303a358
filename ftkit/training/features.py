"""Rows of features in flat columns, on the disk where they are many.

A list of dicts of lists costs some 60 bytes a token, and the garbage collector walks through it again and
again. A column of numbers costs four, saved often one or two, and the disk's are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy
from numpy.typing import NDArray

from ftkit.stored import Numbers

if TYPE_CHECKING:
    from ftkit.training.heads import Features

_VALUES, _ENDS = ".values.npy", ".ends.npy"
_VALUES_AT_ONCE = 2**20


@dataclass(slots=True)
class _Column:
    """The values of one name, row after row.

    Attributes:
        values: All numbers.
        ends: Where the numbers of each row end; `None` where every row has one number, and no list.
    """

    values: Any
    ends: Any

    @classmethod
    def of(cls, value: Any) -> _Column:
        """An empty column for values like this one."""
        listed = isinstance(value, list)
        example = next(iter(value), 0) if listed else value
        return cls(Numbers("d" if isinstance(example, float) else "i"), Numbers("q") if listed else None)

    def append(self, value: Any) -> None:
        if self.ends is None:
            self.values.append(value)
        else:
            self.values.extend(value)
            self.ends.append(len(self.values))

    def __getitem__(self, row: int) -> Any:
        if self.ends is None:
            value = self.values[row]
            return value.item() if isinstance(value, numpy.generic) else value
        start = self.ends[row - 1] if row else 0
        return self.values[start : self.ends[row]].tolist()


class FeatureTable(Sequence["Features"]):
    """Rows of features, numbers and lists of numbers by the same names; each is made when it is asked for.

    However many are added, few of them are in memory.

    Args:
        rows: What it holds to begin with.
    """

    def __init__(self, rows: Iterable[Features] = ()) -> None:
        self._columns: dict[str, _Column] = {}
        self._rows = 0
        self.extend(rows)

    def append(self, row: Features) -> None:
        """Add a row.

        Raises:
            ValueError: It has other names than the rows before it.
        """
        if not self._rows:
            self._columns = {name: _Column.of(value) for name, value in row.items()}
        if row.keys() != self._columns.keys():
            raise ValueError(f"a row of {list(row)} among rows of {list(self._columns)}")
        for name, value in row.items():
            self._columns[name].append(value)
        self._rows += 1

    def extend(self, rows: Iterable[Features]) -> None:
        """Add rows."""
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._rows))]
        # A range knows negative numbers, and raises the error that ends an iteration.
        row = range(self._rows)[index]
        return {name: column[row] for name, column in self._columns.items()}

    def lengths(self, name: str) -> NDArray[numpy.int64]:
        """How many numbers each row has by a name that stands for lists; the rows are not read."""
        if not self._rows:
            return numpy.zeros(0, dtype=numpy.int64)
        return numpy.diff(self._columns[name].ends[:], prepend=0)

    def distinct(self, name: str) -> NDArray[numpy.int64]:
        """The numbers that any row has by a name, ascending; none is below 0, and the rows are not read."""
        if not self._rows:
            return numpy.zeros(0, dtype=numpy.int64)
        values = self._columns[name].values
        parts = values.parts() if isinstance(values, Numbers) else _parts(values)
        seen = numpy.zeros(0, dtype=bool)
        for part in parts:
            if (room := int(part.max()) + 1) > len(seen):
                seen = numpy.pad(seen, (0, room - len(seen)))
            seen[part] = True
        return numpy.flatnonzero(seen)

    # On the disk ------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write every column to files of its own."""
        for name, column in self._columns.items():
            _save(folder / f"{name}{_VALUES}", column.values, _narrowest(column.values))
            if column.ends is not None:
                _save(folder / f"{name}{_ENDS}", column.ends, numpy.dtype(numpy.int64))

    @property
    def names(self) -> list[str]:
        """The names of a row's values, in their order."""
        return list(self._columns)

    @classmethod
    def mapped(cls, folder: Path, names: Sequence[str], rows: int) -> FeatureTable:
        """What was saved in a folder; the numbers stay there until they are needed.

        Args:
            folder: Where it was saved.
            names: The names of a row's values, in their order.
            rows: How many rows there are.

        Raises:
            OSError: A file is not there.
            ValueError: One is no array.
        """
        table = cls()
        table._rows = rows
        for name in names:
            ends = folder / f"{name}{_ENDS}"
            table._columns[name] = _Column(
                mapped(folder / f"{name}{_VALUES}"), mapped(ends) if ends.is_file() else None
            )
        return table


def lengths(rows: Sequence[Features]) -> NDArray[numpy.int64]:
    """Tokens of each row."""
    if isinstance(rows, FeatureTable):
        return rows.lengths("input_ids")
    return numpy.array([len(row["input_ids"]) for row in rows], dtype=numpy.int64)


def distinct_tokens(rows: Sequence[Features]) -> NDArray[numpy.int64]:
    """The tokens that stand in any row, ascending."""
    if isinstance(rows, FeatureTable):
        return rows.distinct("input_ids")
    return numpy.unique(numpy.array([token for row in rows for token in row["input_ids"]], dtype=numpy.int64))


def _parts(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(values), _VALUES_AT_ONCE):
        yield values[start : start + _VALUES_AT_ONCE]


def _narrowest(values: Numbers) -> numpy.dtype[Any]:
    """The smallest type that holds all numbers; that of floats is theirs."""
    if not len(values) or values.kind.kind == "f":
        return values.kind
    lowest, highest = zip(*((part.min(), part.max()) for part in values.parts()), strict=True)
    return numpy.result_type(*(numpy.min_scalar_type(number) for number in (min(lowest), max(highest))))


def _save(path: Path, values: Numbers, kind: numpy.dtype[Any]) -> None:
    """Write what `numpy.save` would, a part at a time."""
    header = {"descr": kind.str, "fortran_order": False, "shape": (len(values),)}
    with path.open("wb") as file:
        numpy.lib.format.write_array_header_1_0(file, header)
        for part in values.parts():
            file.write(part.astype(kind).tobytes())


def mapped(path: Path) -> NDArray[Any]:
    """The numbers in a file of numpy's, read when they are needed."""
    # A view of a plain array: slices of a memmap are memmaps, which are slow to make.
    return numpy.asarray(numpy.load(path, mmap_mode="r", allow_pickle=False))
