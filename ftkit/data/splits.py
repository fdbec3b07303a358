"""Cut a share of the rows off, the same share of every label, by a seed."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Part(Sequence[T]):
    """Some rows of others.

    Args:
        rows: The others.
        numbers: Which of them.
    """

    def __init__(self, rows: Sequence[T], numbers: Sequence[int]) -> None:
        self._rows = rows
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[T]:
        return (self._rows[number] for number in self._numbers)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._rows[number] for number in self._numbers[place]]
        return self._rows[self._numbers[place]]


def stratified_split(
    rows: Sequence[T],
    groups: Iterable[Hashable],
    fraction: float,
    seed: int,
    *,
    pooled: bool = False,
    copies: Mapping[int, int] | None = None,
) -> tuple[Part[T], Part[T]]:
    """Split rows into (rest, held out), each in the original order.

    Every group gives `fraction` of its rows; what rounding leaves over goes to the groups
    with the largest remainders, so that the total is right. No group is emptied.

    Args:
        rows: All rows.
        groups: The group of each.
        fraction: The share to hold out.
        seed: Of the draws.
        pooled: Whether groups of one row make up a group together; by default none of them is held out.
        copies: Of rows that repeat an earlier one, the number of that one: they go where it goes, and only
            the others are counted.

    >>> list(stratified_split("aaaabbbb", "aaaabbbb", 0.25, seed=0)[1])
    ['a', 'b']
    """
    members: dict[Hashable, array[int]] = defaultdict(lambda: array("q"))
    copies, of = copies or {}, list(groups)
    for index, group in enumerate(of):
        if index not in copies:
            members[group].append(index)
    if pooled and len(alone := [group for group, its in members.items() if len(its) == 1]) > 1:
        members[None] = array("q", [members.pop(group)[0] for group in alone])
    quota = {group: len(indices) * fraction for group, indices in members.items()}
    taken = {group: int(share) for group, share in quota.items()}
    left = round((len(rows) - len(copies)) * fraction) - sum(taken.values())
    by_remainder = sorted(members, key=lambda group: (taken[group] - quota[group], repr(group)))
    for group in by_remainder:
        if left > 0 and taken[group] + 1 < len(members[group]):
            taken[group] += 1
            left -= 1
    held = bytearray(len(rows))
    for group in sorted(members, key=repr):
        for index in random.Random(f"{seed}:{group!r}").sample(members[group], taken[group]):
            held[index] = True
    # A group that only copies are in, of rows of other groups, is not emptied either.
    kept = {of[index] for index in range(len(rows)) if not held[copies.get(index, index)]}
    for index, first in copies.items():
        if of[index] not in kept:
            held[first] = False
            kept.add(of[index])
    for index, first in copies.items():
        held[index] = held[first]
    rest, cut = (
        array("q", (index for index, is_held in enumerate(held) if is_held == kind)) for kind in (0, 1)
    )
    return Part(rows, rest), Part(rows, cut)
