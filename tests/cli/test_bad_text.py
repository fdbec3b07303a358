"""Bad rows, templates and settings of tasks that write texts: one clear message, an exit code of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_text_round_trip import command
from training.test_writing import build_loud

Refused = Callable[..., str]
Say = Callable[..., None]
Row = dict[str, Any]

GOOD_CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD_TEXT = {"text": "the red card", "target": "red"}
GOOD_ASKED = {"instruction": "say red", "output": "red"}


@pytest.fixture
def ftkit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in this process, where the libraries are imported already."""
    return lambda *arguments, **options: command(
        *arguments, cwd=tmp_path, stdin=options.pop("input", ""), **options
    )


@pytest.fixture
def text(folder: Path, tiny: Callable[[str], Path], say: Say) -> Callable[..., Path]:
    """`text("instruction", rows, "gpt2")` makes a recipe for a task on the rows."""

    def put(task: str, rows: list[Row], architecture: str = "gpt2", *lines: str) -> Path:
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        say(
            f"task: {task}",
            f"model: {{name_or_path: {tiny(architecture)}, max_length: 64}}",
            "data: {train_file: train.jsonl}",
            "training: {max_steps: 1}",
            "generation: {max_new_tokens: 8}",
            *lines,
        )
        return folder / "train.jsonl"

    return put


def chat(*turns: Any, key: str = "messages") -> Row:
    """A conversation of (role, content)."""
    return {key: [{"role": role, "content": content} for role, content in turns]}


def shared(*turns: Any) -> Row:
    return {"conversations": [{"from": role, "value": content} for role, content in turns]}


ORDER = "an optional system message, then user and assistant in turn, beginning with the user"

# Rows after one that is right, and what is to be read about the second.
CHATS = {
    "role": (chat(("user", "a"), ("bot", "b")), "message 2 has the role 'bot'\n  allowed: system, user"),
    "no role": ({"messages": [{"content": "a"}]}, "message 1 has the role None"),
    "role is a number": (chat((1, "a")), "message 1 has the role 1"),
    "tool": (chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "message 2 has the role 'tool'"),
    "order": (
        chat(("user", "a"), ("user", "b"), ("assistant", "c")),
        f"message 2 is the user's where the assistant's should stand\n  {ORDER}",
    ),
    "assistant first": (
        chat(("assistant", "a"), ("user", "b"), ("assistant", "c")),
        f"message 1 is the assistant's where the user's should stand\n  {ORDER}",
    ),
    "assistant after system": (
        chat(("system", "s"), ("assistant", "a")),
        "message 2 is the assistant's where the user's should stand",
    ),
    "second system": (
        chat(("user", "a"), ("system", "b"), ("assistant", "c")),
        "message 2 is the system's where the assistant's should stand",
    ),
    "system alone": (chat(("system", "a")), "the conversation holds nothing but a system message"),
    "empty answer": (chat(("user", "a"), ("assistant", "")), "the content of message 2 is empty"),
    "blank answer": (chat(("user", "a"), ("assistant", " \n")), "the content of message 2 is empty"),
    "null answer": (chat(("user", "a"), ("assistant", None)), "the content of message 2 is missing (null)"),
    "null question": (chat(("user", None), ("assistant", "b")), "the content of message 1 is missing (null)"),
    "list content": (chat(("user", [1]), ("assistant", "b")), "the content of message 1 is [1], not a"),
    "surrogate": (chat(("user", "a"), ("assistant", "\ud800")), "the content of message 2 holds half a char"),
    "no answer": (chat(("user", "a")), "the row has no answer, as other rows do"),
    "string": ({"messages": "hi"}, "the messages are no list, or an empty one"),
    "object": ({"messages": {"role": "user", "content": "a"}}, "the messages are no list, or an empty one"),
    "empty list": ({"messages": []}, "the messages are no list, or an empty one"),
    "null": ({"messages": None}, "the messages are no list, or an empty one"),
    "strings": ({"messages": ["hi", "hello"]}, "message 1 is no object with role and content"),
    "other column": ({"dialog": []}, "no column 'instruction', 'prompt' or 'messages'\n  found: dialog"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_conversations(name: str, text: Callable[..., Path], refused: Refused) -> None:
    row, says = CHATS[name]
    path = text("instruction", [GOOD_CHAT, row])
    refused(3, "check", "recipe.yaml", says=f"{path}:2: {says}")


def test_sharegpt(text: Callable[..., Path], refused: Refused) -> None:
    path = text("instruction", [shared(("human", "a"), ("gpt", "b")), shared(("human", "a"), ("bing", "b"))])
    refused(3, "check", "recipe.yaml", says=f"{path}:2: message 2 has the role 'bing'\n  allowed: system,")


# The task, a row after one that is right, and what is to be read about it.
ROWS = {
    "empty": ("instruction", GOOD_ASKED, {"instruction": "a", "output": ""}, "the row has no answer"),
    "blank": ("instruction", GOOD_ASKED, {"instruction": "a", "output": " "}, "the output is empty"),
    "null": ("instruction", GOOD_ASKED, {"instruction": "a", "output": None}, "the row has no answer"),
    "number": ("instruction", GOOD_ASKED, {"instruction": "a", "output": 7}, "the output is 7, not a string"),
    "question": ("instruction", GOOD_ASKED, {"instruction": " ", "output": "a"}, "the instruction is empty"),
    "instances": (
        "instruction", {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
        {"instruction": "a", "instances": ["b"]}, "instances is no list of objects with input and output",
    ),
    "text": ("text2text", GOOD_TEXT, {"text": None, "target": "a"}, "the text is missing (null)"),
    "target null": ("text2text", GOOD_TEXT, {"text": "a", "target": None}, "the row has no answer, as other"),
    "target empty": ("text2text", GOOD_TEXT, {"text": "a", "target": ""}, "the row has no answer, as other"),
    "target blank": ("text2text", GOOD_TEXT, {"text": "a", "target": "\t"}, "the target is empty"),
    "target number": ("text2text", GOOD_TEXT, {"text": "a", "target": 7}, "the target is 7, not a string"),
    "targets": ("text2text", GOOD_TEXT, {"text": "a", "target": ["b", ""]}, "the target is empty"),
    "second text": (
        "text2text", GOOD_TEXT | {"text_pair": "b"}, GOOD_TEXT | {"text_pair": ""}, "the text_pair is empty",
    ),
    "no second text": ("text2text", GOOD_TEXT | {"context": "b"}, GOOD_TEXT, "the row has no second text"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, text: Callable[..., Path], refused: Refused) -> None:
    task, good, bad, says = ROWS[name]
    path = text(task, [good, bad])
    refused(3, "check", "recipe.yaml", says=f"{path}:2: {says}")


def test_documents_that_hold_nothing_are_counted(text: Callable[..., Path], ftkit: Any) -> None:
    path = text("language_modeling", [{"text": one} for one in ("the red card", "", " \t", None, "blue")])
    done = ftkit("check", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert f"train: 3 rows hold nothing and are left out (first: {path}:2)" in done.stdout


@pytest.mark.parametrize(
    ("task", "rows", "says"),
    [
        (
            "text2text",
            [{"text": "a", "target": None}, GOOD_TEXT],
            "train.jsonl:1: the row has no answer, as other rows do",
        ),
        ("text2text", [{"text": "a", "target": None}], "train.jsonl:1: no training row has an answer"),
        ("instruction", [chat(("user", "a"))], "train.jsonl:1: no training row has an answer"),
        ("text2text", [{"text": "a"}], "train.jsonl:1: no column 'target' or 'summary' or"),
        ("text2text", [{"target": "a"}], "train.jsonl:1: no column 'text' or 'source' or"),
        ("instruction", [{"instruction": "a"}], "train.jsonl:1: no column 'output' or 'completion' or"),
        ("instruction", [{"output": "a"}], "train.jsonl:1: no column 'instruction', 'prompt' or 'messages'"),
    ],
)
def test_columns(
    task: str, rows: list[Row], says: str, text: Callable[..., Path], folder: Path, refused: Refused
) -> None:
    text(task, rows)
    refused(3, "check", "recipe.yaml", says=f"{folder}/{says}")


# Recipes ------------------------------------------------------------------------------------------

RECIPES = {
    "unknown field": ("task: {type: text2text, template: '{{ text }} {{ question }}'}",
                      "task.template: the template names 'question'; the fields are: text, text_pair"),
    "no text": ("task: {type: text2text, template: 'Summarise.'}",
                "task.template: the template does not name the field text"),
    "loop": ("task: {type: text2text, template: '{% for i in text %}{{ i }}{% endfor %}'}",
             "task.template: the template holds a loop (line 1), which is refused"),
    "syntax": ("task: {type: text2text, template: '{{ text'}", "task.template: no template: "),
    "labels": ("task: {type: instruction, labels: [a, b]}", "task.labels: unknown key; allowed: type, trunc"),
    "truncation": ("task: {type: text2text, truncation: middle}",
                   "task.truncation: 'middle' is not allowed; allowed: left, right, drop, error"),
    "no system": ("task: {type: instruction, system: ' '}", "task: system is empty; leave the key out"),
    "no chat template": ("task: {type: instruction, chat_template: ''}", "task: chat_template is"),
    "metric": ("metrics: [rouge_l, accuracy]", "metrics.1: accuracy scores a label"),
    "temperature": ("generation: {temperature: 0.7}", "generation: temperature does nothing"),
    "top_p": ("generation: {top_p: 0.7, do_sample: false}", "generation: top_p does nothing"),
    "length_penalty": ("generation: {length_penalty: 2.0}", "generation: length_penalty does nothing"),
    "no tokens": ("generation: {max_new_tokens: 0}", "generation.max_new_tokens: 0 is not over 0"),
    "misspelt": ("generation: {max_tokens: 5}", "generation.max_tokens: unknown key; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, text: Callable[..., Path], folder: Path, say: Say, refused: Refused) -> None:
    line, says = RECIPES[name]
    text("text2text", [GOOD_TEXT])
    say(line)
    number = (folder / "recipe.yaml").read_text().splitlines().index(line) + 1
    error = refused(2, "check", "recipe.yaml", says=f"{folder / 'recipe.yaml'}:{number}: {says}")
    if name == "metric":
        fitting = set(error.partition("fit: ")[2].strip().split(", "))
        assert {"answer_loss", "bleu", "chrf", "exact_match", "rouge_l", "token_f1"} <= fitting
        assert not {"accuracy", "entity_f1", "pearson"} & fitting


@pytest.mark.parametrize("task", ["text2text", "instruction"])
def test_an_encoder_does_not_write(
    task: str, text: Callable[..., Path], looks_like_bert: Path, say: Say, refused: Refused
) -> None:
    text(task, [GOOD_TEXT | GOOD_ASKED])
    say(f"model: {{name_or_path: {looks_like_bert}}}")
    says = (
        f"model.name_or_path: {looks_like_bert}: task {task} does not work with models of the family "
        "encoder\n  it works with: decoder (gpt2,",
        "encoder_decoder (t5,",
    )
    refused(2, "check", "recipe.yaml", says=says)


def test_more_tokens_at_least_than_at_most(text: Callable[..., Path], say: Say, refused: Refused) -> None:
    text("text2text", [GOOD_TEXT])
    say("generation: {max_new_tokens: 4, min_new_tokens: 8}")
    refused(2, "check", "recipe.yaml", says="min_new_tokens")


def test_the_check_knows_the_positions(text: Callable[..., Path], say: Say, refused: Refused) -> None:
    text("text2text", [GOOD_TEXT])
    say("generation: {max_new_tokens: 256}")
    refused(2, "check", "recipe.yaml", says="generation.max_new_tokens is 256, the model has 256 positions")


def test_the_check_reads_a_chat_template(text: Callable[..., Path], say: Say, refused: Refused) -> None:
    text("instruction", [GOOD_CHAT])
    say("task: {type: instruction, chat_template: '{% if messages %}'}")
    refused(2, "check", "recipe.yaml", says="task")


# Training -----------------------------------------------------------------------------------------


def test_more_tokens_than_positions(
    text: Callable[..., Path], folder: Path, say: Say, refused: Refused
) -> None:
    """Of 256 positions 256 are to be written: there is none for a prompt."""
    text("text2text", [GOOD_TEXT])
    say("generation: {max_new_tokens: 256}", "data: {train_file: train.jsonl, test_file: train.jsonl}")
    says = "generation.max_new_tokens is 256, the model has 256 positions\n  lower it, so that a prompt fits"
    refused(2, "finetune", "recipe.yaml", says=says, makes=("run",))


def test_more_tokens_than_positions_is_said_before_training(
    text: Callable[..., Path], folder: Path, say: Say, refused: Refused
) -> None:
    text("text2text", [GOOD_TEXT])
    say("generation: {max_new_tokens: 256}", "data: {train_file: train.jsonl, test_file: train.jsonl}")
    refused(2, "finetune", "recipe.yaml", says="generation.max_new_tokens is 256")


def test_more_tokens_than_positions_of_an_encoder_decoder(
    text: Callable[..., Path],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    say: Say,
    refused: Refused,
) -> None:
    model = build_loud(None, tmp_path_factory.mktemp("model") / "bart")
    text("text2text", [GOOD_TEXT])
    say(
        f"model: {{name_or_path: {model}, max_length: 32}}",
        "generation: {max_new_tokens: 100, min_new_tokens: 100}",
        "data: {train_file: train.jsonl, test_file: train.jsonl}",
    )
    says = "generation.max_new_tokens is 100, the model has 64 positions"
    refused(2, "finetune", "recipe.yaml", says=says, makes=("run",))


SAYS_DROPPED = (
    "the chat template does not write the answer after its prompt for one\n  give another in task.chat_"
)
TEMPLATES = {
    "drops the answer": ("{{ messages[0]['content'] }}", SAYS_DROPPED),
    "answer before the question": ("{{ messages[-1]['content'] }}{{ messages[0]['content'] }}", SAYS_DROPPED),
    "shortens the answer": (
        "{% for m in messages %}{{ m['content'][:4] }}{% endfor %}", SAYS_DROPPED),
    "raises": (
        "{{ raise_exception('Only    user roles\nare supported') }}",
        "the chat template fails: Only user roles are supported"),
    "undefined": ("{{ messages[0]['text']['value'] }}", "the chat template fails: "),
    "unknown filter": ("{{ messages | shout }}", "the chat template fails: "),
    "type": ("{{ messages[0]['content'] + 1 }}", "the chat template fails: "),
    "unsafe": ("{{ messages.__class__.__mro__ }}", "the chat template fails: "),
    "division": pytest.param("{{ 1 / 0 }}", "the chat template fails: "),
    "answers alone": (
        "{% for m in messages if m.role == 'assistant' %}{{ bos_token + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}{% endif %}",
        "the chat template does not write what is said to the assistant\n  give another in task.chat_templ"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "says"),
    [
        pytest.param(*getattr(given, "values", given), marks=getattr(given, "marks", ()), id=name)
        for name, given in TEMPLATES.items()
    ],
)
def test_chat_templates(
    template: str, says: str, text: Callable[..., Path], say: Say, refused: Refused
) -> None:
    text("instruction", [chat(("user", "what?"), ("assistant", "nothing"))])
    say(f"task: {json.dumps({'type': 'instruction', 'chat_template': template})}")
    refused(3, "finetune", "recipe.yaml", says=says, makes=("run",))


def test_a_template_that_fails_for_one_row_names_it(
    text: Callable[..., Path], say: Say, refused: Refused
) -> None:
    system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    body = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    end = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    path = text("instruction", [GOOD_CHAT, chat(("system", "s"), ("user", "a"), ("assistant", "b"))])
    say(f"task: {json.dumps({'type': 'instruction', 'chat_template': system + body + end})}")
    says = f"{path}:2: the chat template fails: no system prompts"
    refused(3, "finetune", "recipe.yaml", says=says, makes=("run",))


def test_a_template_that_needs_a_system_prompt(text: Callable[..., Path], say: Say, ftkit: Any) -> None:
    needs = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    body = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    end = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    text("instruction", [GOOD_CHAT])
    task = {"type": "instruction", "chat_template": needs + body + end, "system": "be kind"}
    say(f"task: {json.dumps(task)}")
    done = ftkit("finetune", "recipe.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_every_answer_is_too_long(
    architecture: str, text: Callable[..., Path], say: Say, refused: Refused
) -> None:
    path = text(
        "text2text",
        [{"text": "a", "target": "long " * 20}, {"text": "b", "target": "far " * 20}],
        architecture,
    )
    says = (
        "nothing can be learned from any training row: 2 rows do not fit within 64 tokens with their whole "
        f"answer, and are left out (first: {path}:1)"
    )
    refused(3, "finetune", "recipe.yaml", says=says, makes=("run",))


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_row_that_is_too_long_where_that_is_an_error(
    architecture: str, text: Callable[..., Path], say: Say, refused: Refused
) -> None:
    path = text("text2text", [GOOD_TEXT, {"text": "long " * 20, "target": "a"}], architecture)
    say("task: {type: text2text, truncation: error}")
    says = (
        f"{path}:2: the row has 1",
        " tokens, more than the 64 there is room for\n  shorten it, raise model.max",
    )
    refused(3, "finetune", "recipe.yaml", says=says, makes=("run",))


@pytest.fixture
def good(text: Callable[..., Path], folder: Path, say: Say, ftkit: Any) -> Path:
    """A finished run in the test's folder."""
    text("text2text", [GOOD_TEXT])
    say("data: {train_file: train.jsonl}")
    done = ftkit("finetune", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_is_not_replaced_by_one_that_cannot_start(good: Path, say: Say, refused: Refused) -> None:
    assert (good / "model").is_dir()
    say("task: {type: text2text, truncation: error}", "model: {name_or_path: MODEL, max_length: 8}")
    recipe = good.parent / "recipe.yaml"
    model = json.loads((good / "manifest.json").read_text())["base_model"]["source"]
    recipe.write_text(recipe.read_text().replace("MODEL", model))
    refused(3, "finetune", "recipe.yaml", "--overwrite", says="the row has")


def test_no_validation_row_fits(text: Callable[..., Path], folder: Path, say: Say, ftkit: Any) -> None:
    """Whether it is refused or only said: it ends as a tool ends."""
    text("text2text", [GOOD_TEXT])
    (folder / "validation.jsonl").write_text(json.dumps({"text": "a", "target": "long " * 20}))
    say("data: {train_file: train.jsonl, validation_file: validation.jsonl}")
    done = ftkit("finetune", "recipe.yaml")
    assert done.returncode != 1
    assert "Traceback" not in done.stderr


def test_what_is_trained_stays_where_no_test_row_fits(
    text: Callable[..., Path], folder: Path, say: Say, ftkit: Any
) -> None:
    text("text2text", [GOOD_TEXT])
    (folder / "test.jsonl").write_text(json.dumps({"text": "a", "target": "long " * 20}))
    say("data: {train_file: train.jsonl, test_file: test.jsonl}")
    done = ftkit("finetune", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "note: nothing is scored: " in done.stderr
    assert "test.jsonl:1: none of the 1 scored rows fits with its answer" in done.stderr
    assert ftkit("predict", "run", "--text", "a").returncode == 0


def test_rows_that_are_left_out_of_a_score_are_told(good: Path, folder: Path, ftkit: Any) -> None:
    rows = [GOOD_TEXT, {"text": "a", "target": "long " * 20}]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = ftkit("eval", "run", "--set", "data.test_file=test.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 rows do not fit within 64 tokens" in done.stderr


def test_a_chat_with_a_run_that_follows_several_texts_at_once(
    text: Callable[..., Path], say: Say, ftkit: Any
) -> None:
    text("instruction", [GOOD_CHAT])
    say("generation: {max_new_tokens: 4, num_beams: 2}")
    assert ftkit("finetune", "recipe.yaml").returncode == 0
    done = ftkit("chat", "run", "--once", "hi")
    assert done.returncode != 1
    assert "Traceback" not in done.stderr


# A finished run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that refuses what is too long."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "train.jsonl").write_text(json.dumps(GOOD_TEXT))
    recipe = {
        "task": {"type": "text2text", "truncation": "error"}, "method": "full", "output_dir": "run",
        "model": {"name_or_path": str(tiny("gpt2")), "max_length": 64}, "training": {"max_steps": 1},
        "data": {"train_file": "train.jsonl"}, "generation": {"max_new_tokens": 8},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    done = command("finetune", "recipe.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize(
    "verb",
    [
        "eval",
        pytest.param("predict"),
    ],
)  # fmt: skip
def test_a_long_row_of_a_finished_run(verb: str, strict: Path, folder: Path, refused: Refused) -> None:
    (folder / "rows.jsonl").write_text(
        "\n".join(map(json.dumps, [GOOD_TEXT, {"text": "x" * 90, "target": "y"}]))
    )
    given = ("rows.jsonl",) if verb == "predict" else ("--set", "data.test_file=rows.jsonl")
    refused(
        3,
        verb,
        strict,
        *given,
        says="tokens, more than the 64",
        watch=(strict,),
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--text", " "), 3, "text 1: the text is empty"),
        (("--text", "a", "--text-pair", "b"), 2, "the run was trained on single texts"),
        (("--text", "a", "--format", "conll"), 2, "--format conll: the task text2text does not tag words"),
        (("odd.jsonl",), 3, "odd.jsonl:2: the text is 7, not a string"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_for(
    arguments: tuple[str, ...], code: int, says: str, strict: Path, folder: Path, refused: Refused
) -> None:
    (folder / "odd.jsonl").write_text('{"text": "a"}\n{"text": 7}\n')
    # The row before the broken one is answered.
    prints = arguments == ("odd.jsonl",)
    refused(code, "predict", strict, *arguments, says=says, prints=prints, watch=(strict,))
