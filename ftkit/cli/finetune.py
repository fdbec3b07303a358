"""`ftkit finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftkit.cli import app, console, options
from ftkit.training.processes import is_main_process


@app.command()
def finetune(
    recipe: options.Recipe,
    set_: options.Set = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    limit: options.Limit = None,
    gate: options.Gates = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a torch profiler trace of a few steps to the run folder.")
    ] = False,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a recipe, save the run, and score it."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.cli.gating import apply_gates, read_gates
    from ftkit.errors import UsageError
    from ftkit.finetuning import finetune as run_recipe

    if overwrite and resume:
        raise UsageError("give --resume or --overwrite, not both: one goes on with the run, one removes it")
    gates = read_gates(gate, recipe, set_ or ())
    run = run_recipe(
        recipe,
        set_ or (),
        overwrite=overwrite,
        resume=resume,
        limit=limit,
        profile=profile,
        gated=bool(gates),
    )
    if not is_main_process():
        return
    metrics = run.metrics
    if json_:
        console.emit_json({"run": str(run.folder), **metrics})
    else:
        console.emit(console.scores(metrics))
    apply_gates(gates, run.recipe, metrics)
    folder = console.shown(run.folder)
    example = run.recipe.task.example_arguments(pairs=run.pairs)
    console.hint(f"Saved to {folder}\nNext: ftkit predict {folder} {example}")
