"""`ftkit list`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ftkit.cli import app, console, options


class Kind(StrEnum):
    """What can be listed."""

    tasks = "tasks"
    families = "families"
    methods = "methods"
    metrics = "metrics"
    formats = "formats"
    prompts = "prompts"
    recipes = "recipes"


@app.command(name="list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    json_: options.Json = False,
) -> None:
    """List what a recipe can name, and the recipes that ship with ftkit."""
    from ftkit.catalogue import catalogue

    entries = catalogue(kind.value)
    if json_:
        console.emit_json({kind.value: entries})
    else:
        width = max(map(len, entries), default=0)
        console.emit("\n".join(f"{name.ljust(width)}  {text}" for name, text in entries.items()))
