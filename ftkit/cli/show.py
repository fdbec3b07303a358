"""`ftkit show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ftkit.cli import app, console, options


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe file or name.")] = None,
    set_: options.Set = None,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="Instead, show what the model sees of the first N rows."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")] = False,
    json_: options.Json = False,
) -> None:
    """Print a recipe complete: parents, --set, defaults and absolute paths in place."""
    console.start()
    from ftkit.errors import UsageError
    from ftkit.recipe import Recipe, load_recipe
    from ftkit.recipe.loading import to_tree, to_yaml

    if schema:
        console.emit_json(Recipe.model_json_schema())
        return
    if recipe is None:
        raise UsageError("give a RECIPE, or --schema")
    checked = load_recipe(recipe, set_ or ())
    if examples and not checked.method.trains:
        from ftkit.showing import prompt_examples

        prompts = prompt_examples(checked, examples)
        if json_:
            console.emit_json({"prompts": prompts})
        else:
            console.emit("\n\n".join(map(_prompt, prompts)))
        return
    if examples:
        from dataclasses import asdict

        from ftkit.showing import training_examples

        found = training_examples(checked, examples)
        if json_:
            console.emit_json({"examples": [asdict(example) for example in found]})
        else:
            console.emit("\n\n".join("\n".join(example.lines()) for example in found))
        return
    if json_:
        console.emit_json(to_tree(checked))
    else:
        console.emit(to_yaml(checked).rstrip())


def _prompt(prompt: dict[str, Any]) -> str:
    """A prompt for a person to read, with what would be ranked."""
    name = f"{prompt['prompt_name']}, " if prompt["prompt_name"] else ""
    text = prompt["prompt"] + prompt["before_the_answer"] + "[...]" + prompt["after_the_answer"]
    answers = "".join(f"\n  [{answer}]" for answer in prompt["answers"])
    return f"== {name}{prompt['where']}\n{text}{answers}"
