"""`ftkit --version`."""

from __future__ import annotations

from typing import Annotated

import typer

import ftkit
from ftkit.cli import app


def _print_version(asked: bool) -> None:
    if asked:
        print(ftkit.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune, prompt and measure language models; one recipe per task."""
