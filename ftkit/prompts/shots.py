"""Shots: the solved examples that stand in a prompt."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest

from ftkit.errors import UsageError
from ftkit.records import Record


def choose_shots(train: Sequence[Record], number: int, *, how: str, seed: int) -> list[Record]:
    """Choose solved examples from the training split.

    Args:
        train: Training records with answers.
        number: How many.
        how: `fixed` takes the first rows; `random` any, by the seed; `balanced` as many of each answer
            as possible, by the seed, answers alternating.
        seed: Seed of the choice.

    Raises:
        UsageError: There are fewer rows than that.
    """
    if number > len(train):
        raise UsageError(
            f"method.num_fewshot: {number} shots are asked for, the training split has {len(train)} rows",
            hint="lower num_fewshot, or give data.train_file",
        )
    if how == "fixed":
        return list(train[:number])
    generator = random.Random(seed)
    if how == "random":
        return generator.sample(list(train), number)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in train:
        groups[repr(record.target)].append(record)
    columns = [generator.sample(group, len(group)) for _, group in sorted(groups.items())]
    generator.shuffle(columns)
    alternating = chain.from_iterable(zip_longest(*columns))
    return [record for record in alternating if record is not None][:number]
