"""In which keys two recipes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.recipe.loading import to_tree
from ftkit.recipe.schema import Recipe


def differences(old: Recipe, new: Recipe, blocks: Sequence[str] = ()) -> list[str]:
    """The keys in which two recipes differ, as sentences; `output_dir` does not count."""
    before, after = _flat(to_tree(old)), _flat(to_tree(new))
    changed = [
        key
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key) and key != "output_dir"
    ]
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in changed
        if not blocks or key.partition(".")[0] in blocks
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
