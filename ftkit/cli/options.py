"""Options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Split(StrEnum):
    """A split of the data."""

    train = "train"
    validation = "validation"
    test = "test"


Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what the libraries say.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Read at most this many rows of each split (for shots, all are read)."),
]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="SCORE>=N", help="Fail with exit code 4 below it; repeatable."),
]
