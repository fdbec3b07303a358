"""Prompting: scores against plain transformers code, shots, templates, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ftkit
from ftkit.errors import FtkitError
from ftkit.prompts.shots import choose_shots
from ftkit.prompts.template import Template
from ftkit.records import Record

LABELS = ["blue", "green", "red"]


@pytest.fixture
def prompted(recipe: dict[str, Any], tiny: Callable[[str], Path]) -> dict[str, Any]:
    """A recipe that asks a tiny GPT-2."""
    method = {"type": "prompt", "template": "Text: {{ text }}\nColour:", "num_fewshot": 1}
    changed = {"model": {"name_or_path": str(tiny("gpt2"))}, "method": method}
    return {key: value for key, value in recipe.items() if key != "training"} | changed


def rows(run: ftkit.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def plain_scores(folder: Path, context: str, answers: list[str]) -> list[float]:
    """Log-likelihoods of answers, one text at a time, without a cache."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    scores = []
    for answer in answers:
        ids = tokenizer(context + answer, return_tensors="pt")["input_ids"]
        start = tokenizer(context, return_tensors="pt")["input_ids"].shape[1]
        with torch.inference_mode():
            logs = model(ids).logits[0].log_softmax(dim=-1)
        scores.append(sum(logs[n - 1, ids[0, n]].item() for n in range(start, ids.shape[1])))
    return scores


@pytest.mark.parametrize("num_fewshot", [0, 1])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_are_those_of_plain_transformers(
    architecture: str, num_fewshot: int, prompted: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tied = tiny(architecture)
    AutoModelForCausalLM.from_pretrained(tied).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tied).save_pretrained(folder)
    prompted["model"] = {"name_or_path": str(folder)}
    prompted["method"] |= {"num_fewshot": num_fewshot}
    run = ftkit.evaluate(prompted).run
    shots = json.loads((run.folder / "model/prompt.json").read_text())[0]["shots"]
    assert len(shots) == num_fewshot
    before = "".join(f"Text: {shot['fields']['text']}\nColour: {shot['answer']}\n\n" for shot in shots)
    for row in rows(run)[:5]:
        values = plain_scores(folder, f"{before}Text: {row['text']}\nColour:", [f" {n}" for n in LABELS])
        expected = torch.tensor(values, dtype=torch.float64).softmax(dim=0).tolist()
        assert row["scores"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-4)


def test_scores_do_not_depend_on_company_or_order(prompted: dict[str, Any]) -> None:
    run = ftkit.evaluate(prompted).run
    texts = [row["text"] for row in rows(run)[:6]]
    together = ftkit.predict(run, texts)
    for text, prediction in zip(texts[::-1], ftkit.predict(run, texts[::-1]), strict=True):
        assert prediction.scores == pytest.approx(together[texts.index(text)].scores, abs=1e-5)
    assert ftkit.predict(run, texts[:1])[0].scores == pytest.approx(together[0].scores, abs=1e-5)


def test_the_command_line(prompted: dict[str, Any], tmp_path: Path, ftkit: Callable[..., Any]) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(prompted))
    assert "Next: ftkit eval recipe.yaml" in ftkit("check", "recipe.yaml").stderr
    refused = ftkit("finetune", "recipe.yaml")
    assert refused.returncode == 2
    assert "method prompt does not train\n  score it with ftkit eval RECIPE" in refused.stderr
    first = ftkit("eval", "recipe.yaml", "--json")
    assert first.returncode == 0, first.stderr
    assert "none of them trained; 1 shot" in first.stderr
    scores = json.loads(first.stdout)
    again = ftkit("eval", "recipe.yaml", "--json")
    assert json.loads(again.stdout)["metrics"] == scores["metrics"], "the shots are those of the run"
    answer = ftkit("predict", "run", "--text", "the red card")
    assert answer.returncode == 0, answer.stderr
    nothing = ftkit("predict", "run", "-", "--explain", input="")
    assert nothing.returncode == 3
    assert "standard input: there are no rows to predict for" in nothing.stderr
    card = (tmp_path / "run/README.md").read_text()
    assert "No weights were trained" in card
    merged = ftkit("export", "run")
    assert merged.returncode == 2
    assert "trains nothing" in merged.stderr


WRONG = {
    "unknown field": (
        {"template": "{{ txet }}"},
        "names 'txet'; the fields are: text, text_pair, labels",
    ),
    "no field": ({"template": "Colour:"}, "names no field of a row"),
    "attribute": ({"template": "{{ text.__class__ }}"}, "holds an attribute (line 1), which is refused"),
    "call": ({"template": "{{ range(9) }}"}, "holds a call"),
    "loop": ({"template": "{% for a in text %}{{ a }}{% endfor %}"}, "holds a loop"),
    "bomb": ({"template": "{{ text * 1000000000 }}"}, "holds a multiplication"),
    "filter": ({"template": "{{ text | pprint }}"}, "the template's filter 'pprint' is none of"),
    "broken": ({"template": "{{ text"}, "no template:"),
    "same words": ({"verbalizer": {"red": "x", "blue": "x"}}, "two labels have the word 'x'"),
    "blank word": ({"verbalizer": {"red": " ", "blue": "x"}}, "a label has a word of white space"),
    "word of another": ({"verbalizer": {"red": "blue"}}, "two labels have the word 'blue'"),
    "no label": ({"verbalizer": {"pink": "x"}}, "method.verbalizer: 'pink' is no label"),
    "too many shots": ({"num_fewshot": 46}, "46 shots are asked for, the training split has 45 rows"),
    "long": ({"description": "word " * 60}, "the prompt has more than 256 tokens, even without shots"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_prompted(name: str, prompted: dict[str, Any]) -> None:
    options, says = WRONG[name]
    prompted["method"] |= options
    with pytest.raises(FtkitError) as caught:
        ftkit.evaluate(prompted)
    assert says in str(caught.value)


def test_models_and_tasks_that_cannot_be_prompted(
    prompted: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    bert = prompted | {"model": {"name_or_path": str(tiny("bert"))}}
    with pytest.raises(FtkitError, match="method prompt does not work with models of the family encoder"):
        ftkit.evaluate(bert)
    with pytest.raises(FtkitError, match="the task regression cannot be asked in a prompt"):
        ftkit.evaluate(prompted | {"task": "regression"})
    headless = prompted | {"model": {"name_or_path": str(tiny("llama"))}}
    with pytest.raises(FtkitError, match="the checkpoint has no language model head"):
        ftkit.evaluate(headless)


def test_shots_that_do_not_fit_are_dropped_and_said(
    prompted: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    prompted["method"] |= {"num_fewshot": 12}
    run = ftkit.evaluate(prompted).run
    assert "prompts do not hold all 12 shots" in caplog.text
    assert len(rows(run)) == 15


RECORDS = [Record(f"row {number}", target="ab"[number % 3 == 0], where=str(number)) for number in range(30)]


def test_shots() -> None:
    assert [record for record, _ in choose_shots(RECORDS, 2, how="fixed", seed=1)] == RECORDS[:2]
    for how in ("random", "balanced"):
        assert choose_shots(RECORDS, 4, how=how, seed=1) == choose_shots(RECORDS, 4, how=how, seed=1)
        assert choose_shots(RECORDS, 4, how=how, seed=1) != choose_shots(RECORDS, 4, how=how, seed=2)
    balanced = choose_shots(RECORDS, 6, how="balanced", seed=3)
    assert sorted(str(record.target) for record, _ in balanced) == ["a"] * 3 + ["b"] * 3


def test_a_row_is_never_its_own_example(prompted: dict[str, Any], colours: Path, tmp_path: Path) -> None:
    train = (colours / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(train)
    prompted["data"] = {"train_file": str(tmp_path / "train.csv"), "test_file": str(tmp_path / "train.csv")}
    prompted["method"] |= {"shots": "fixed"}
    run = ftkit.evaluate(prompted).run
    first = rows(run)[0]
    folder = Path(prompted["model"]["name_or_path"])
    values = plain_scores(folder, f"Text: {first['text']}\nColour:", [f" {name}" for name in LABELS])
    expected = torch.tensor(values, dtype=torch.float64).softmax(dim=0).tolist()
    assert list(first["scores"].values()) == pytest.approx(expected, abs=1e-4)


def test_a_template_has_conditions_and_filters() -> None:
    template = Template("{% if text_pair is defined %}{{ text_pair }} {% endif %}{{ text | upper }}")
    assert template.render({"text": "a"}) == "A"
    assert template.render({"text": "a", "text_pair": "b"}) == "b A"


def test_the_prediction_is_the_likeliest_candidate(prompted: dict[str, Any]) -> None:
    for row in rows(ftkit.evaluate(prompted).run):
        assert row["scores"][row["prediction"]] == max(row["scores"].values()) > min(row["scores"].values())
