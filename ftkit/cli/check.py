"""`ftkit check`."""

from __future__ import annotations

import shlex

from ftkit.cli import app, console, options


@app.command()
def check(
    recipe: options.Recipe,
    set_: options.Set = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a recipe, its data and its model in a second, before anything is loaded."""
    console.start(quiet=quiet)
    from ftkit.component import discover
    from ftkit.methods.base import Method
    from ftkit.preflight import check as check_recipe

    report = check_recipe(recipe, set_ or ())
    if json_:
        console.emit_json(report)
    else:
        console.emit("\n".join(f"{name}: {value}" for name, value in report.items()))
    overrides = "".join(f" --set {shlex.quote(override)}" for override in set_ or ())
    verb = "finetune" if discover(Method)[report["method"]].trains else "eval"
    console.hint(f"Next: ftkit {verb} {recipe}{overrides}")
