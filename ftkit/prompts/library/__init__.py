"""The prompt library: named ways to ask, in a YAML file for each task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Entry:
    """A way to ask.

    Attributes:
        summary: What it is for, on a line.
        template: Jinja that makes a row's question; empty for the task's own.
        description: What stands before everything else.
    """

    summary: str = ""
    template: str = ""
    description: str = ""


@cache
def _entries(task: str) -> dict[str, Entry]:
    path = files(__package__) / f"{task}.yaml"
    if not path.is_file():
        return {}
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: Entry(**entry) for name, entry in tree.items()}


def tasks() -> list[str]:
    """The tasks that have prompts."""
    found = [path.name for path in files(__package__).iterdir() if path.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in found)


def names(task: str) -> list[str]:
    """The prompts of a task."""
    return list(_entries(task))


def find(task: str, name: str) -> Entry:
    """A prompt of a task by its name."""
    return _entries(task)[name]
