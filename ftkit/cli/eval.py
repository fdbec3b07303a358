"""`ftkit eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftkit.cli import app, console, options


@app.command()
def eval(  # noqa: A001
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="A run folder, or the recipe that made one.")
    ],
    split: Annotated[options.Split | None, typer.Option(help="By default test, else validation.")] = None,
    set_: options.Set = None,
    limit: options.Limit = None,
    all_prompts: Annotated[
        bool, typer.Option("--all-prompts", help="Score every prompt of the library, and their spread.")
    ] = False,
    overwrite: options.Overwrite = False,
    gate: options.Gates = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Score a run, or a recipe that only prompts, on its own data or (--set data.test_file=F) on new."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.cli.gating import apply_gates, read_gates
    from ftkit.evaluation import evaluate

    gates = read_gates(gate, target, set_ or ())
    evaluation = evaluate(
        target,
        set_ or (),
        split=split and split.value,
        limit=limit,
        all_prompts=all_prompts,
        overwrite=overwrite,
    )
    if json_:
        console.emit_json({"run": str(evaluation.run.folder), **evaluation.metrics})
    else:
        console.emit(console.scores(evaluation.metrics))
    apply_gates(gates, evaluation.run.recipe, evaluation.metrics)
    console.hint(f"Predictions: {console.shown(evaluation.folder / 'predictions.jsonl')}")
