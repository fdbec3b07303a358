"""The recipes that come with ftkit."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """Where they lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


@cache
def names() -> tuple[str, ...]:
    """Their names, such as `classification/bert_full_sst2`."""
    found = folder().rglob("*.yaml")
    return tuple(sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in found))


def find(name: str) -> Path | None:
    """The file of a shipped recipe."""
    return folder() / f"{name}.yaml" if name in names() else None


def summary(name: str) -> str:
    """The first comment line of a shipped recipe."""
    with (folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
