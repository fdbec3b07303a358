"""`ftkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftkit.cli import app, console, options


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made one.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge adapters into their base model.")] = False,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to; by default RUN/export.")
    ] = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a run's model as a plain transformers folder."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.exporting import export as export_run

    folder = export_run(run, Path(output) if output else None, merge=merge)
    if json_:
        console.emit_json({"model": str(folder)})
    else:
        console.emit(str(folder))
