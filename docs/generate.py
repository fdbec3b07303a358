"""Generate the reference: the command line's help, the recipe's keys, the JSON Schema.

python docs/generate.py            writes docs/cli.md, docs/recipe.md, docs/recipe.schema.json
python docs/generate.py --check    exit 1 where they are out of date
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkit.catalogue import KINDS, catalogue
from ftkit.component import Component, attribute_docstrings, discover
from ftkit.data.source import DataSource
from ftkit.models.source import FreshTokenizer, ModelSource
from ftkit.recipe import Recipe
from ftkit.recipe.schema import EarlyStopping, EngineSettings, Gate, Generation
from ftkit.training.arguments import OWNED

HERE = Path(__file__).parent
VERBS = ("finetune", "eval", "compare", "predict", "chat", "check", "show", "list", "export")
BLOCKS = (
    ("model", ModelSource),
    ("model.tokenizer", FreshTokenizer),
    ("data", DataSource),
    ("generation", Generation),
    ("engine", EngineSettings),
    ("early_stopping", EarlyStopping),
    ("gates.METRIC", Gate),
)


def pages() -> dict[str, str]:
    """Every generated page by its file name."""
    schema = json.dumps(Recipe.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {
        "cli.md": "\n".join(cli_page()),
        "recipe.md": "\n".join(recipe_page()),
        "recipe.schema.json": schema,
    }


def cli_page() -> Iterator[str]:
    """The help texts, as they look in a terminal of 88 columns."""
    yield "# The command line\n"
    yield "Generated from `ftkit --help`. Results go to standard output, everything else to standard"
    yield "error. Exit codes: 0 done; 1 a bug; 2 usage or recipe error, or a run folder in use;"
    yield "3 data, model, network or disk problem, or a run that diverged; 4 a gate failed;"
    yield "130 interrupted; 141 whoever read the output closed it.\n"
    for verb in ("", *VERBS):
        yield f"## ftkit {verb}".rstrip() + "\n"
        yield "```text"
        yield help_text(verb)
        yield "```\n"


def help_text(verb: str) -> str:
    """`ftkit VERB --help`, without trailing blanks."""
    environment = os.environ | {"COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ftkit", *([verb] if verb else []), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines() if line.strip())


def recipe_page() -> Iterator[str]:
    """Every key of a recipe with its default and meaning."""
    yield "# The recipe\n"
    yield "Generated from the code; `docs/recipe.schema.json` is the same for editors. An editor with"
    yield "YAML support completes and checks a recipe that begins with the comment"
    yield "`# yaml-language-server: $schema=PATH/recipe.schema.json`.\n"
    yield "## Top level\n"
    yield from key_table(Recipe)
    yield "`extends: PATH` (or the name of a shipped recipe) lays a recipe over another one: mappings"
    yield "key by key, everything else replaced. A component of another `type` replaces the whole block, and"
    yield "another origin of the data or the model (files, a Hub set; weights, fresh ones) that below it.\n"
    for name, block in BLOCKS:
        yield f"## {name}\n"
        yield from key_table(block)
    for kind in ("tasks", "methods"):
        for name, component in discover(KINDS[kind]).items():
            yield f"## {kind.removesuffix('s')}: {{type: {name}}}\n"
            yield component.summary() + "\n"
            yield from key_table(component)
            if kind == "tasks":
                yield from field_table(component)
    yield "## metrics\n"
    yield from (f"- `{name}`: {text}" for name, text in catalogue("metrics").items())
    yield "\n## training\n"
    yield "The names of transformers' `TrainingArguments`, except those that ftkit owns:\n"
    yield from (f"- `{name}`: {instead}" for name, instead in sorted(OWNED.items()))
    yield "\nWhere a recipe says nothing, ftkit evaluates and saves once an epoch, logs twenty times,"
    yield "keeps one checkpoint beside the best, loads the best one at the end (by the first metric; where"
    yield "steps tie, by the validation loss), and reports to no tracker (`report_to`). What is said of"
    yield "evaluating alone (by steps or epochs) holds for saving, and the other way round; `eval_steps` or"
    yield "`save_steps` alone mean the strategy `steps`.\n"


def field_table(task: Any) -> Iterator[str]:
    """A table row a field of a task."""
    yield "Fields of a row; `data.columns` names other columns.\n"
    yield "| field | columns that are found by their names | needed |"
    yield "|---|---|---|"
    for name, field in task.fields.items():
        needed = "to train and to score" if name in task.answer_fields else "yes" if field.required else ""
        yield f"| `{name}` | {', '.join(f'`{alias}`' for alias in field.aliases)} | {needed} |"
    yield ""


def key_table(block: Any) -> Iterator[str]:
    """A table row a key."""
    described = attribute_docstrings(block)
    rows = [
        (f"`{key}`", default_of(field), " ".join(described.get(key, "").split()))
        for key, field in block.model_fields.items()
        if key != "type" or not issubclass(block, Component)
    ]
    if rows:
        yield "| key | default | meaning |\n|---|---|---|"
        yield from ("| " + " | ".join(row) + " |" for row in rows)
        yield ""


def default_of(field: Any) -> str:
    """A field's default as a recipe writes it."""
    if field.is_required():
        return "needed"
    if field.default is None or not isinstance(field.default, (str, int, float)):
        return ""
    return f"`{json.dumps(field.default)}`"


def main() -> None:
    """Write the pages, or compare them."""
    stale = [name for name, text in pages().items() if not same(HERE / name, text)]
    if "--check" not in sys.argv:
        for name, text in pages().items():
            (HERE / name).write_text(text, encoding="utf-8")
    elif stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")


def same(path: Path, text: str) -> bool:
    """Whether the file holds the text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
