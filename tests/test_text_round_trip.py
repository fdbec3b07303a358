"""Texts by the command line: a saved run needs no ftkit, and writes without it what it wrote with it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_round_trip import fresh
from training.test_writing import build_loud
from transformers import AutoModel, AutoTokenizer

import ftkit
from ftkit.cli import main
from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.tasks.instruction import Instruction

NEW_TOKENS = 8
SYSTEM = "be kind"
Row = dict[str, Any]


def command(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`ftkit ARGUMENTS` in this process: what a new one would take most of its time for is imported."""
    out, err = io.StringIO(), io.StringIO()
    log, before, argv, standard_input = logging.getLogger("ftkit"), Path.cwd(), sys.argv, sys.stdin
    kept, warned = (log.handlers[:], log.level, log.propagate), dict(os.environ)
    code: Any = 0
    try:
        os.chdir(cwd or before)
        sys.argv = ["ftkit", *map(str, arguments)]
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as error:
                code = error.code
            except Exception:  # noqa: BLE001
                code = 1
                traceback.print_exc()
    finally:
        os.chdir(before)
        sys.argv, sys.stdin = argv, standard_input
        log.handlers[:], log.propagate = kept[0], kept[2]
        log.setLevel(kept[1])
        for name in os.environ.keys() - warned.keys():
            del os.environ[name]
    return subprocess.CompletedProcess([*map(str, arguments)], code, out.getvalue(), err.getvalue())


# Rows ---------------------------------------------------------------------------------------------

# Each form holds an instruction with an input; two hold several turns and a system prompt as well.


def alpaca(asked: str, given: str, said: str) -> Row:
    return {"instruction": asked, "input": given, "output": said}


def completion(asked: str, given: str, said: str) -> Row:
    return {"prompt": f"{asked}\n\n{given}" if given else asked, "completion": said}


def instances(asked: str, given: str, said: str) -> Row:
    return {"instruction": asked, "instances": [{"input": given, "output": said}]}


def messages(asked: str, given: str, said: str, *earlier: str) -> Row:
    turns = [{"role": "system", "content": SYSTEM}] if earlier else []
    for number, text in enumerate(earlier):
        turns.append({"role": ("user", "assistant")[number % 2], "content": text})
    turns += [
        {"role": "user", "content": f"{asked}\n\n{given}" if given else asked},
        {"role": "assistant", "content": said},
    ]
    return {"messages": turns}


def sharegpt(asked: str, given: str, said: str, *earlier: str) -> Row:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = messages(asked, given, said, *earlier)["messages"]
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}


FORMS: dict[str, Callable[..., Row]] = {
    "alpaca": alpaca, "completion": completion, "instances": instances, "messages": messages,
    "sharegpt": sharegpt,
}  # fmt: skip
COLOURS = ["red", "green", "blue", "violet"]
THINGS = ["card", "phone"]


def instructions(form: str) -> list[Row]:
    """The colour of a thing is to be named, with an input in half of the rows."""
    rows = []
    for number, (colour, thing) in enumerate((c, t) for t in THINGS for c in COLOURS):
        given = f"a {colour} one" if number % 2 else ""
        asked = f"the {thing}?" if number % 2 else f"the {colour} {thing}?"
        earlier = ("hi", "yes?") if form in ("messages", "sharegpt") and number % 3 == 0 else ()
        rows.append(FORMS[form](asked, given, colour, *earlier))
    return rows


def texts() -> list[Row]:
    return [{"text": f"the {colour} {thing}", "target": colour} for thing in THINGS for colour in COLOURS]


def conversation(row: Row, system: str | None) -> list[dict[str, str]]:
    """What a row asks, as a chat template takes it, by our own reading of the five forms."""
    if "instances" in row:
        row = {"instruction": row["instruction"], **row["instances"][0]}
    if "prompt" in row:
        row = {"instruction": row["prompt"]}
    if "instruction" in row:
        given = f"\n\n{row['input']}" if row.get("input") else ""
        turns = [{"role": "user", "content": row["instruction"] + given}]
    else:
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        turns = [
            {"role": turn["role"], "content": turn["content"]}
            if "role" in turn
            else {"role": roles[turn["from"]], "content": turn["value"]}
            for turn in row.get("messages", row.get("conversations"))
        ][:-1]
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return turns


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, instructions(form))))
    source = DataSource(train_file=str(tmp_path / "rows.jsonl"))
    for system in (None, SYSTEM):
        records = load_records(source, Instruction(system=system))["train"]
        for record, row in zip(records, instructions(form), strict=True):
            turns = [{"role": turn.role, "content": turn.content} for turn in record.turns]
            assert turns == conversation(row, system)
            assert record.text == turns[-1]["content"]
            assert record.target.text in COLOURS  # type: ignore[union-attr]


def test_every_instance_of_a_row_is_a_record(tmp_path: Path) -> None:
    """Each is a question of its own; of the rows, as many are read as are asked for."""
    answered = [{"input": "a", "output": "1"}, {"input": "", "output": "2"}]
    rows = [{"instruction": "x", "instances": answered}, {"instruction": "y", "instances": answered[:1]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"instruction": "z", "instances": answered}])))
    records = load_records(DataSource(train_file=str(path)), Instruction(), limit=2)["train"]
    assert [(record.text, record.target.text) for record in records] == [  # type: ignore[union-attr]
        ("x\n\na", "1"), ("x", "2"), ("y\n\na", "1"),
    ]  # fmt: skip
    assert [record.where.removeprefix(f"{path}:") for record in records] == [
        "1, instance 1", "1, instance 2", "2",
    ]  # fmt: skip
    # Where a share is held out of other rows, as many of these are read.
    (tmp_path / "others.jsonl").write_text("\n".join(map(json.dumps, rows * 10)))
    source = DataSource(
        train_file=str(tmp_path / "others.jsonl"), test_file=str(path), validation_fraction=0.5
    )
    assert len(load_records(source, Instruction(), limit=2)["test"]) == 3


def test_a_rows_own_system_prompt_wins(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "b", "system": "own"},
        {"instruction": "c", "output": "d", "system": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = load_records(DataSource(train_file=str(tmp_path / "rows.jsonl")), Instruction(system=SYSTEM))
    assert [record.turns[0].content for record in records["train"]] == ["own", SYSTEM]


# Runs ---------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A run to make, and what came of it."""

    architecture: str
    task: str
    method: str
    form: str = ""
    system: str | None = None
    steps: int = 4
    folder: Path = Path()
    base: Path = Path()
    done: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.architecture, self.task, self.method, self.form) if part)

    @property
    def rows(self) -> list[Row]:
        return texts() if self.task == "text2text" else instructions(self.form)

    def recipe(self) -> Row:
        return {
            "task": {"type": self.task, **({"system": self.system} if self.system else {})},
            "model": {"name_or_path": str(self.base), "max_length": 120},
            "data": {"train_file": "rows.jsonl", "test_file": "rows.jsonl"},
            "method": {"type": "lora", "r": 16} if self.method == "lora" else "full",
            "training": {
                "max_steps": self.steps, "learning_rate": 0.01 if self.steps > 4 else 0.001,
                "per_device_train_batch_size": 8, "save_strategy": "no", "lr_scheduler_type": "constant",
            },
            "engine": {"precision": "fp32"},
            "generation": {"max_new_tokens": NEW_TOKENS},
            "metrics": ["answer_loss", "rouge_l"],
            "output_dir": "run",
            "seed": 7,
        }  # fmt: skip

    def asked(self) -> list[Any]:
        """What plain transformers reads: a prompt, or the turns for a chat template."""
        if self.task == "instruction":
            return [conversation(row, self.system) for row in self.rows]
        if self.architecture == "t5":
            return [row["text"] for row in self.rows]
        return [f"Input: {row['text']}\nOutput:" for row in self.rows]


# Where a run has more than a few steps, it learns to end its answers.
CASES = [
    Case("gpt2", "text2text", "full", steps=30),
    *(Case(a, "text2text", "full") for a in ("llama", "t5")),
    *(Case(a, "text2text", "lora") for a in ("gpt2", "llama", "t5")),
    Case("gpt2", "instruction", "full", "alpaca", SYSTEM),
    Case("gpt2", "instruction", "lora", "messages"),
    Case("llama", "instruction", "full", "sharegpt", "be brief", steps=30),
    Case("llama", "instruction", "lora", "completion"),
    Case("t5", "instruction", "full", "instances"),
    Case("t5", "instruction", "lora", "messages"),
]
LORA = [case for case in CASES if case.method == "lora"]
NAMES = [case.name for case in CASES]

# Plain transformers (and peft): nothing of ftkit is imported.
PLAIN = """
import contextlib, io, json, os, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

def write(one, folder, base):
    seq2seq = one["architecture"] == "t5"
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    if base:
        from peft import PeftModel
        model = PeftModel.from_pretrained(auto.from_pretrained(base), folder)
    else:
        model = auto.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    texts = []
    for asked in one["asked"]:
        if isinstance(asked, str):
            inputs = tokenizer(asked, return_tensors="pt")
        else:
            # What an encoder reads ends with an end token, as all that T5 was trained on.
            text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            text += tokenizer.eos_token if seq2seq else ""
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = inputs["input_ids"]
        with torch.no_grad():
            written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                     max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id)[0]
        new = written if seq2seq else written[ids.shape[1]:]
        texts.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts

def snippet(one):
    os.chdir(one["run"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(one["snippet"], {})
    return [out.getvalue().strip()]

found = {}
for one in json.load(open("cases.json")):
    model = one["run"] + "/model"
    found[one["name"]] = {"saved": write(one, model, one["base"]), "snippet": snippet(one)}
    if one["base"]:
        found[one["name"]]["merged"] = write(one, one["run"] + "/../merged", None)
assert not [name for name in sys.modules if name.partition(".")[0] == "ftkit"]
print(json.dumps(found))
""".replace("NEW_TOKENS", str(NEW_TOKENS))


def snippet(case: Case) -> str:
    """The Python of the model card, for the first row without other turns."""
    (_, code, _) = (case.folder / "run" / "README.md").read_text().split("```")
    return code.removeprefix("python").replace("...", "the red card")


@pytest.fixture(scope="module")
def runs(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """Every case through `ftkit finetune` (and `export --merge`), then all in one process without ftkit."""
    loud = {a: build_loud(tiny(a), tmp_path_factory.mktemp("loud") / a) for a in ("gpt2", "llama", "t5")}
    plain = []
    for case in CASES:
        case.folder = tmp_path_factory.mktemp(case.name)
        case.base = loud[case.architecture]
        if case.name == "llama-text2text-lora":
            # A checkpoint without a language model head: the adapter must bring it along.
            case.base = tmp_path_factory.mktemp("headless")
            shutil.copytree(loud["llama"], case.base, dirs_exist_ok=True)
            AutoModel.from_pretrained(loud["llama"]).save_pretrained(case.base)
        (case.folder / "recipe.yaml").write_text(json.dumps(case.recipe(), indent=1))
        (case.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, case.rows)))
        case.done["finetune"] = command("finetune", "recipe.yaml", "--json", cwd=case.folder)
        assert case.done["finetune"].returncode == 0, case.done["finetune"].stderr
        if case.method == "lora":
            case.done["export"] = command("export", "run", "--merge", "--output", "merged", cwd=case.folder)
        plain.append({
            "name": case.name, "architecture": case.architecture, "asked": case.asked(),
            "run": str(case.folder / "run"), "base": str(case.base) if case.method == "lora" else None,
            "snippet": snippet(case),
        })  # fmt: skip
    folder = tmp_path_factory.mktemp("plain")
    (folder / "cases.json").write_text(json.dumps(plain))
    found = json.loads(fresh(PLAIN, folder).splitlines()[-1])
    for case in CASES:
        case.written = found[case.name]
    yield {case.name: case for case in CASES}


def answers(printed: str) -> list[str]:
    return [json.loads(line)["answer"] for line in printed.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_model_writes_without_ftkit_what_it_writes_with_it(
    name: str, runs: dict[str, Case]
) -> None:
    case = runs[name]
    predicted = command("predict", "run", "rows.jsonl", cwd=case.folder)
    assert predicted.returncode == 0, predicted.stderr
    texts = answers(predicted.stdout)
    assert len(set(texts)) > 2, "the rows tell"
    assert texts == case.written["saved"]
    saved = [json.loads(line) for line in (case.folder / "run/predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in saved] == texts
    assert [row["target"] for row in saved] == [colour for _ in THINGS for colour in COLOURS]


@pytest.mark.parametrize("name", [case.name for case in LORA])
def test_a_merged_model_writes_the_same(name: str, runs: dict[str, Case]) -> None:
    case = runs[name]
    assert case.done["export"].returncode == 0, case.done["export"].stderr
    assert case.done["export"].stdout.strip() == str(case.folder / "merged")
    assert case.written["merged"] == case.written["saved"]
    assert not list((case.folder / "merged").glob("adapter*"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(case.name)
        if (case.architecture, case.task) == ("t5", "instruction")
        else case.name
        for case in CASES
    ],
)  # fmt: skip
def test_the_snippet_of_the_model_card(name: str, runs: dict[str, Case]) -> None:
    case = runs[name]
    predicted = command("predict", "run", "--text", "the red card", "--json", cwd=case.folder)
    (answer,) = json.loads(predicted.stdout)["predictions"]
    assert [answer["answer"]] == case.written["snippet"]


@pytest.mark.parametrize("name", NAMES[1::2])
def test_a_run_is_evaluated_again_with_the_same_scores(name: str, runs: dict[str, Case]) -> None:
    case = runs[name]
    known = json.loads(case.done["finetune"].stdout)
    again = command("eval", "run", "--json", cwd=case.folder)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    for metric, score in known["metrics"].items():
        assert found["metrics"][metric] == pytest.approx(score, rel=1e-6), metric
    assert found.get("signatures") == known["signatures"]


@pytest.mark.parametrize("name", [case.name for case in CASES if case.task == "instruction"])
def test_the_chat_template_is_saved(name: str, runs: dict[str, Case]) -> None:
    case = runs[name]
    folders = ["run/model", *(["merged"] if case.method == "lora" else [])]
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(case.folder / folder)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
        assert text.endswith("User: hi\nAssistant:")


@pytest.mark.parametrize("name", [case.name for case in CASES if case.steps == 30])
def test_a_trained_answer_ends(name: str, runs: dict[str, Case]) -> None:
    """Where the model has learned to end its answers, they do not go on to the most tokens allowed."""
    case = runs[name]
    assert any(len(text) < NEW_TOKENS for text in case.written["saved"])


@pytest.mark.parametrize(
    "name",
    [
        "llama-instruction-full-sharegpt",
        pytest.param("gpt2-instruction-lora-messages"),
    ],
)  # fmt: skip
def test_what_ends_an_answer_is_saved(name: str, runs: dict[str, Case]) -> None:
    """A chat template can close answers with a token that the base model does not stop at."""
    case = runs[name]
    saved = case.folder / "run/model/generation_config.json"
    says = json.loads(saved.read_text()).get("eos_token_id") if saved.is_file() else None
    assert says or "eos_token_id" in snippet(case)


def test_text_and_pipe_and_file_and_python_say_the_same(runs: dict[str, Case]) -> None:
    case = runs["gpt2-text2text-full"]
    asked = [row["text"] for row in case.rows[:3]]
    expected = case.written["saved"][:3]
    piped = command("predict", "run", "-", stdin="\n".join(asked), cwd=case.folder)
    assert answers(piped.stdout) == expected, piped.stderr
    objects = "\n".join(json.dumps(row) for row in case.rows[:3])
    assert answers(command("predict", "run", "-", stdin=objects, cwd=case.folder).stdout) == expected
    typed = command("predict", "run", *(part for text in asked for part in ("--text", text)), cwd=case.folder)
    shown = [line for text, answer in zip(asked, expected, strict=True) for line in (text, f"  {answer}")]
    assert typed.stdout.rstrip("\n").splitlines() == [line.rstrip("\n") for line in shown]
    limited = command("predict", "run", "rows.jsonl", "--limit", 2, cwd=case.folder)
    assert answers(limited.stdout) == expected[:2]
    assert [str(one.value) for one in ftkit.predict(case.folder / "run", asked)] == expected


def test_what_is_not_read_is_said_once(runs: dict[str, Case]) -> None:
    case = runs["gpt2-text2text-full"]
    done = command("predict", "run", "-", stdin="\n".join(["red " * 2000] * 3), cwd=case.folder)
    said = "tokens a part is not read (first: standard input, line 1)"
    assert done.stderr.count(said) == 1, done.stderr
    assert "is not read" not in command("predict", "run", "--text", "red", cwd=case.folder).stderr


def test_a_conversation_by_pipe(runs: dict[str, Case]) -> None:
    case = runs["llama-instruction-full-sharegpt"]
    piped = command("predict", "run", "-", stdin="\n".join(map(json.dumps, case.rows)), cwd=case.folder)
    assert answers(piped.stdout) == case.written["saved"], piped.stderr
    # The answer that a row holds plays no part.
    other = json.loads(json.dumps(case.rows[:4]))
    for row in other:
        row["conversations"][-1]["value"] = "something else"
    piped = command("predict", "run", "-", stdin="\n".join(map(json.dumps, other)), cwd=case.folder)
    assert answers(piped.stdout) == case.written["saved"][:4]
    for row in other:
        row["conversations"].pop()
    piped = command("predict", "run", "-", stdin="\n".join(map(json.dumps, other)), cwd=case.folder)
    assert answers(piped.stdout) == case.written["saved"][:4]


def test_instructions_by_pipe(runs: dict[str, Case]) -> None:
    case = runs["gpt2-instruction-full-alpaca"]
    piped = command("predict", "run", "-", stdin="the red card?\n", cwd=case.folder)
    typed = command("predict", "run", "--text", "the red card?", "--json", cwd=case.folder)
    assert answers(piped.stdout) == [one["answer"] for one in json.loads(typed.stdout)["predictions"]]


def test_other_generation_at_evaluation(runs: dict[str, Case]) -> None:
    """How texts are written is no part of what a run is made of."""
    case = runs["gpt2-text2text-full"]
    shorter = command("eval", "run", "--set", "generation.max_new_tokens=1", "--json", cwd=case.folder)
    assert shorter.returncode == 0, shorter.stderr
    (folder,) = (case.folder / "run/eval").iterdir()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert max(len(row["prediction"]) for row in rows) <= 1
    assert json.loads(shorter.stdout)["generation"]["max_new_tokens"] == 1
    for name in ("manifest.json", "metrics.json"):
        recorded = json.loads((case.folder / "run" / name).read_text())["generation"]
        assert recorded["max_new_tokens"] == NEW_TOKENS
        saved = json.loads((case.folder / "run/model/generation_config.json").read_text())
        assert recorded["eos_token_id"] == saved["eos_token_id"]
