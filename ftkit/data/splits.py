"""Cut a share of the rows off, the same share of every label, by a seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def stratified_split(
    rows: Sequence[T], groups: Sequence[Hashable], fraction: float, seed: int
) -> tuple[list[T], list[T]]:
    """Split rows into (rest, held out), each in the original order.

    Every group gives `fraction` of its rows; what rounding leaves over goes to the groups
    with the largest remainders, so that the total is right. No group is emptied.

    >>> stratified_split("aaaabbbb", "aaaabbbb", 0.25, seed=0)[1]
    ['a', 'b']
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    quota = {group: len(indices) * fraction for group, indices in members.items()}
    taken = {group: int(share) for group, share in quota.items()}
    left = round(len(rows) * fraction) - sum(taken.values())
    by_remainder = sorted(members, key=lambda group: (taken[group] - quota[group], repr(group)))
    for group in by_remainder:
        if left > 0 and taken[group] + 1 < len(members[group]):
            taken[group] += 1
            left -= 1
    held = set()
    for group in sorted(members, key=repr):
        held.update(random.Random(f"{seed}:{group!r}").sample(members[group], taken[group]))
    rest = [row for index, row in enumerate(rows) if index not in held]
    return rest, [row for index, row in enumerate(rows) if index in held]
