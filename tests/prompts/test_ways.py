"""Ways to prompt: architectures, calibration, retrieval, generation, chat, every task; by the run folder."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
)

import ftkit
from ftkit.cli import console
from ftkit.errors import FtkitError
from ftkit.prompts.answering import Generating
from ftkit.prompts.cloze import ClozeRanker
from ftkit.prompts.prompting import Prompt
from ftkit.prompts.ranking import Joint
from ftkit.prompts.retrieval import Bm25, Embeddings
from ftkit.prompts.shots import NearestShots, Shot
from ftkit.training.generation import NO_RULES, Writer
from ftkit.training.setup import Loaded

LABELS = ["blue", "green", "red"]


def rows(run: ftkit.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def explained(run: ftkit.Run, texts: list[str]) -> list[dict[str, Any]]:
    from ftkit.prediction import explained_records, records_of_texts

    return explained_records(run, records_of_texts(run, texts, None))


@pytest.fixture
def asking(recipe: dict[str, Any], whole: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    """A recipe that asks a tiny model: `asking("t5", num_fewshot=1)`."""

    def make(architecture: str = "gpt2", **method: Any) -> dict[str, Any]:
        template = {} if "prompt" in method else {"template": "Text: {{ text }}\nColour:"}
        changed = {
            "model": {"name_or_path": str(whole(architecture))},
            "method": {"type": "prompt", **template, **method},
        }
        return {key: value for key, value in recipe.items() if key != "training"} | changed

    return make


# Against plain transformers -----------------------------------------------------------------


def test_t5_scores_are_those_of_its_loss(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path]
) -> None:
    run = ftkit.evaluate(asking("t5", num_fewshot=1)).run
    tokenizer = AutoTokenizer.from_pretrained(whole("t5"))
    model = AutoModelForSeq2SeqLM.from_pretrained(whole("t5")).eval()
    for one in explained(run, ["the red card", "my blue phone is here"]):
        source = tokenizer(one["prompt"].removesuffix(" "), return_tensors="pt")
        for candidate in one["candidates"]:
            labels = tokenizer(text_target=candidate["text"], return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                loss = model(**source, labels=labels).loss.item()
            assert candidate["tokens"] == labels.shape[1]
            assert candidate["log_likelihood"] == pytest.approx(-loss * labels.shape[1], abs=1e-4)


def test_a_cloze_scores_the_words_in_the_mask(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path]
) -> None:
    tree = asking("bert", template="{{ text }} it is {{ mask }} .", answer="cloze", num_fewshot=1)
    tree["method"]["verbalizer"] = {"red": "red", "blue": ["blue", "good film"]}
    run = ftkit.evaluate(tree).run
    tokenizer = AutoTokenizer.from_pretrained(whole("bert"))
    model = AutoModelForMaskedLM.from_pretrained(whole("bert")).eval()
    (one,) = explained(run, ["the red card"])
    shot = one["shots"][0]
    solved = f"{shot['fields']['text']} it is {shot['answer']} .\n\n"
    assert one["prompt"] == f"{solved}the red card it is [MASK] ."
    for candidate in one["candidates"]:
        count = len(candidate["text"].split())
        text = one["prompt"].replace("[MASK]", " ".join(["[MASK]"] * count))
        inputs = tokenizer(text, return_tensors="pt")
        places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
        words = tokenizer(candidate["text"], add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logs = model(**inputs).logits[0].log_softmax(dim=-1)
        expected = sum(logs[place, word].item() for place, word in zip(places, words, strict=True))
        assert candidate["log_likelihood"] == pytest.approx(expected, abs=1e-4)
    # Two words of a label add up.
    by_value = Counter[str]()
    scores = {c["text"]: math.exp(c["log_likelihood"]) for c in one["candidates"]}
    for candidate in one["candidates"]:
        by_value[candidate["value"]] += scores[candidate["text"]]
    blue = by_value["blue"] / sum(by_value.values())
    found = [c["probability"] for c in one["candidates"] if c["value"] == "blue"]
    assert found == pytest.approx([blue, blue], abs=1e-5)


def test_a_cloze_reads_its_own_text_alone(whole: Callable[[str], Path]) -> None:
    """Beside a longer text, and with a point right after the answer, which is no part of it."""
    tokenizer = AutoTokenizer.from_pretrained(whole("bert"))
    model = AutoModelForMaskedLM.from_pretrained(whole("bert")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() > 1 else 1)  # as it comes, it hardly looks at other tokens
    ranker = ClozeRanker(model, tokenizer, device=torch.device("cpu"), precision="fp32")
    texts = ["the red card is", "my good friend has a blue phone and the order is not here, it is"]
    answers = ["red", "good film"]
    rows = [ranker.row(Prompt(text, " ", ".", special=True, shots=()), answers) for text in texts]
    for text, found in zip(texts, ranker.scores(rows, [None, None]), strict=True):
        for answer, ranked in zip(answers, found, strict=True):
            masks = " ".join(["[MASK]"] * len(answer.split()))
            inputs = tokenizer(f"{text} {masks}.", return_tensors="pt")
            places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
            with torch.inference_mode():
                logs = model(**inputs).logits[0].log_softmax(dim=-1)
            words = tokenizer(answer, add_special_tokens=False)["input_ids"]
            expected = sum(logs[place, word].item() for place, word in zip(places, words, strict=True))
            assert (ranked.likelihood, ranked.tokens) == (pytest.approx(expected, abs=1e-3), len(words))


def test_an_encoder_without_its_head_is_refused(
    asking: Callable[..., dict[str, Any]], tiny: Callable[[str], Path]
) -> None:
    tree = asking("bert", answer="cloze") | {"model": {"name_or_path": str(tiny("bert"))}}
    with pytest.raises(FtkitError, match="the checkpoint has no language model head"):
        ftkit.evaluate(tree)


def test_tokens_at_the_border_are_those_of_the_whole_text(whole: Callable[[str], Path]) -> None:
    for architecture in ("gpt2", "llama", "t5"):
        tokenizer = AutoTokenizer.from_pretrained(whole(architecture))
        joint = Joint(tokenizer)
        for context in (
            "Text: the red card\nColour:",
            "Text: my  good phone\n\nColour: ",
            "a",
            "the order is",
        ):
            answers = [" red", " the green card", "s", " redder"]
            start, ids = joint(context, answers, special=True)
            kept = context.rstrip()
            assert start == len(tokenizer(kept)["input_ids"])
            for answer, found in zip(answers, ids, strict=True):
                assert found == tokenizer(context + answer)["input_ids"]


# Normalization and calibration --------------------------------------------------------------


def likelihoods(one: dict[str, Any]) -> dict[str, float]:
    return {candidate["value"]: candidate["log_likelihood"] for candidate in one["candidates"]}


def softmax(scores: dict[str, float]) -> dict[str, float]:
    total = sum(math.exp(score) for score in scores.values())
    return {value: math.exp(score) / total for value, score in scores.items()}


def probabilities(one: dict[str, Any]) -> dict[str, float]:
    return {candidate["value"]: candidate["probability"] for candidate in one["candidates"]}


def test_what_a_likelihood_is_divided_by(asking: Callable[..., dict[str, Any]]) -> None:
    words = {"red": "red card", "blue": "bl\u00fce", "green": "green"}
    lengths: dict[str, Callable[[dict[str, Any]], float]] = {
        "token": lambda c: c["tokens"],
        "character": lambda c: len(c["text"]),
        "byte": lambda c: len(c["text"].encode()),
    }
    for name, length in lengths.items():
        tree = asking(normalization=name, verbalizer=words)
        tree["output_dir"] += name
        (one,) = explained(ftkit.evaluate(tree).run, ["the red card"])
        for candidate in one["candidates"]:
            assert candidate["score"] == pytest.approx(candidate["log_likelihood"] / length(candidate))
    assert len("bl\u00fce") != len("bl\u00fce".encode())


def test_contextual_calibration_and_pmi(asking: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    plain = ftkit.evaluate(asking(num_fewshot=1) | {"output_dir": str(tmp_path / "plain")}).run
    (one,) = explained(plain, ["the red card"])
    before = one["prompt"].partition("Text: the red card")[0]
    # What the model makes of the same prompt with texts that say nothing, as a query of its own.
    from ftkit.estimator import finished_estimator
    from ftkit.prompts.estimator import PromptEstimator
    from ftkit.records import Record

    estimator = finished_estimator(plain)
    assert isinstance(estimator, PromptEstimator)
    free = estimator.explain([Record("N/A"), Record(""), Record("[MASK]")])
    assert all(other["prompt"].startswith(before) for other in free)
    priors = [softmax(likelihoods(other)) for other in free]
    prior = {label: sum(row[label] for row in priors) / 3 for label in LABELS}
    weighed = {label: p / prior[label] for label, p in softmax(likelihoods(one)).items()}
    expected = {label: weight / sum(weighed.values()) for label, weight in weighed.items()}
    tree = asking(num_fewshot=1, calibration="contextual") | {"output_dir": str(tmp_path / "contextual")}
    (calibrated,) = explained(ftkit.evaluate(tree).run, ["the red card"])
    assert probabilities(calibrated) == pytest.approx(expected, abs=1e-5)

    tree = asking(num_fewshot=1, normalization="pmi") | {"output_dir": str(tmp_path / "pmi")}
    (pmi,) = explained(ftkit.evaluate(tree).run, ["the red card"])
    scores = {label: likelihoods(one)[label] - likelihoods(free[0])[label] for label in LABELS}
    assert probabilities(pmi) == pytest.approx(softmax(scores), abs=1e-5)


def test_batch_calibration_takes_the_mean_over_training_texts(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, colours: Path
) -> None:
    plain = ftkit.evaluate(asking() | {"output_dir": str(tmp_path / "plain")}).run
    texts = [line.rpartition(",")[0] for line in (colours / "train.csv").read_text().splitlines()[1:]]
    found = [softmax(likelihoods(one)) for one in explained(plain, texts)]
    prior = {label: sum(row[label] for row in found) / len(found) for label in LABELS}
    run = ftkit.evaluate(asking(calibration="batch") | {"output_dir": str(tmp_path / "batch")}).run
    saved = json.loads((run.folder / "model/prompt.json").read_text())[0]["prior"]
    assert saved == pytest.approx(prior, abs=1e-5)
    (one,), (calibrated,) = explained(plain, ["the red card"]), explained(run, ["the red card"])
    weighed = {label: p / prior[label] for label, p in softmax(likelihoods(one)).items()}
    expected = {label: weight / sum(weighed.values()) for label, weight in weighed.items()}
    assert probabilities(calibrated) == pytest.approx(expected, abs=1e-5)


# Shots ----------------------------------------------------------------------------------------


def test_bm25_is_the_published_formula() -> None:
    pool = ["the red card", "the blue phone is blue", "my money", "a card for the red phone"]
    documents = [text.split() for text in pool]
    mean = sum(map(len, documents)) / len(documents)

    def score(query: str, words: list[str]) -> float:
        total = 0.0
        for word in query.split():
            holding = sum(word in document for document in documents)
            rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            times = words.count(word)
            total += rarity * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    for query in ("blue card", "the money", "unknown words"):
        (found,) = Bm25(pool).nearest([query], 4)
        for place, value in found:
            assert value == pytest.approx(score(query, documents[place]), abs=1e-4)
        assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)


def test_a_text_without_a_word_gets_the_first_rows(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    data = {"train_file": str(train), "test_file": str(test)}
    test.write_text("text,label\nthe red one,red\n!!!,blue\n\U0001f389,green\n")
    for name, texts in (("words", ("the red card", "a blue sky", "green")), ("none", ("?", "...", "!"))):
        rows = zip(texts, ("red", "blue", "green"), strict=True)
        train.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]))
        tree = asking(num_fewshot=2, shots="nearest") | {"data": data, "output_dir": str(tmp_path / name)}
        caplog.clear()
        run = ftkit.evaluate(tree).run
        assert caplog.text.count("'!!!' holds no word, so its shots are the first rows") == 1
        (one,) = explained(run, ["\U0001f389"])
        assert [shot["fields"]["text"] for shot in one["shots"]] == [*texts[:2]][::-1]


@pytest.mark.parametrize("encoder", [False, True])
def test_nearest_shots_are_like_the_query_and_never_the_query(
    encoder: bool, asking: Callable[..., dict[str, Any]], tiny: Callable[[str], Path], colours: Path
) -> None:
    method: dict[str, Any] = {"num_fewshot": 2, "shots": "nearest"}
    if encoder:
        method["encoder"] = str(tiny("bert"))
    run = ftkit.evaluate(asking(**method)).run
    train = [line.rpartition(",")[0] for line in (colours / "train.csv").read_text().splitlines()[1:]]
    for one in explained(run, [train[0], train[7]]):
        query = re.findall(r"Text: (.*)\n", one["prompt"])[-1]
        shots = [shot["fields"]["text"] for shot in one["shots"]]
        assert len(shots) == 2
        assert query not in shots
        assert [shot["why"][:2] for shot in one["shots"]] == ["2.", "1."], "the most similar last"


def test_seeds_give_a_mean_and_a_deviation(asking: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    method = {"num_fewshot": 2, "shots": "random"}
    evaluation = ftkit.evaluate(asking(seeds=[1, 2, 3], **method) | {"output_dir": str(tmp_path / "all")})
    values = []
    for seed in (1, 2, 3):
        tree = asking(**method) | {"output_dir": str(tmp_path / str(seed)), "seed": seed}
        values.append(ftkit.evaluate(tree).metrics["metrics"]["accuracy"]["value"])
    found = evaluation.metrics["metrics"]["accuracy"]
    mean = sum(values) / 3
    assert found["value"] == pytest.approx(mean)
    assert found["deviation"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    ways = evaluation.metrics["details"]["variants"]
    assert [ways[f"seed {seed}"]["accuracy"] for seed in (1, 2, 3)] == values
    assert "gates on tables are those of seed 1 alone" in console.scores(evaluation.metrics)


def test_all_prompts_of_the_library(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, ftkit: Callable[..., Any]
) -> None:
    listed = json.loads(ftkit("list", "prompts", "--json").stdout)["prompts"]
    known = [name.removeprefix("classification/") for name in listed if name.startswith("classification/")]
    assert len(known) >= 5
    tree = asking(prompt="intent") | {"output_dir": "run"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    every = ftkit("eval", "recipe.yaml", "--all-prompts", "--json")
    assert every.returncode == 0, every.stderr
    ways = json.loads(every.stdout)["details"]["variants"]
    assert list(ways) == known
    one = ftkit("eval", "recipe.yaml", "--json")
    assert json.loads(one.stdout)["metrics"]["accuracy"]["value"] == ways["intent"]["accuracy"]
    rendered = ftkit("show", "recipe.yaml", "--examples", "1").stdout
    assert re.search(r"Message: .*\nIntent: \[\.\.\.\]\n  \[blue\]\n  \[green\]\n  \[red\]", rendered)
    shown = ftkit("eval", "run-all-prompts")
    assert "lowest" in shown.stdout
    assert "Message: " in ftkit("predict", "run", "--text", "the red card", "--explain").stdout


# Generation -----------------------------------------------------------------------------------


def test_writing_after_a_shared_beginning_is_writing_without(whole: Callable[[str], Path]) -> None:
    for architecture in ("gpt2", "llama"):
        tokenizer = AutoTokenizer.from_pretrained(whole(architecture))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(whole(architecture)).eval()
        before = "the order is here to help and my money is back for good business in the world. "
        texts = [before + text for text in ("red card", "a blue phone is not", "green")]
        prompts = [tokenizer(text)["input_ids"] for text in texts]
        writer = Writer(model, tokenizer, settings={"max_new_tokens": 12}, stop=None, precision="fp32")
        shared = writer.write_alone(prompts, 2)
        assert writer._prefix(prompts) is not None
        assert shared == writer.write(prompts, 2) == [writer.write([one], 1)[0] for one in prompts]
        settings = {"max_new_tokens": 12, "num_beams": 3}
        beams = Writer(model, tokenizer, settings=settings, stop=None, precision="fp32")
        assert beams.write_alone(prompts, 2) == beams.write(prompts, 2)


@pytest.mark.parametrize("kind", ["gpt_neo", "mpt"])
def test_models_that_count_tokens_by_their_place_write_without_a_shared_beginning(
    kind: str, whole: Callable[[str], Path]
) -> None:
    """Padding between what is shared and the rest would move it away."""
    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4,
                    "hidden_size": 32, "window_size": 8, "max_position_embeddings": 256},
        "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    }  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    before = "the order is here to help and my money is back for good business in the world. "
    texts = [before + text for text in ("red", "a blue phone is not on the table, is it", "green")]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    writer = Writer(model, tokenizer, settings={"max_new_tokens": 8}, stop=None, precision="fp32")
    assert writer.write_alone(prompts, 3) == [writer.write([one], 1)[0] for one in prompts]


@pytest.mark.parametrize("delimiter", [" ", " => ", "\nLabel: ", "\n"])
def test_what_stands_before_an_answer_is_read_and_not_written(
    delimiter: str, asking: Callable[..., dict[str, Any]]
) -> None:
    method = {"answer": "generate", "constrained": True, "target_delimiter": delimiter, "num_fewshot": 1}
    run = ftkit.evaluate(asking(template="Text: {{ text }}", **method)).run
    assert "unreadable" not in run.metrics["details"]
    (one,) = explained(run, ["the red card"])
    assert one["written"] in LABELS


@pytest.mark.parametrize("task", ["classification", "instruction"])
def test_a_chat_ends_where_its_template_ends_a_turn(
    task: str, asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """As with Qwen's base models, whose end token is another."""
    model = AutoModelForCausalLM.from_pretrained(whole("gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    tree = asking(style="chat", answer="generate", template="{{ text }}")
    tree["model"] = {"name_or_path": str(tmp_path / "chat")}
    if task == "instruction":
        (tmp_path / "rows.jsonl").write_text('{"instruction": "hi", "output": "hello"}\n')
        tree |= {
            "task": "instruction",
            "data": {"test_file": str(tmp_path / "rows.jsonl")},
            "method": {"type": "prompt", "style": "chat"},
            "metrics": ["exact_match"],
        }
    run = ftkit.evaluate(tree).run
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in run.manifest["generation"]["eos_token_id"]


def test_models_with_a_state_write_without_a_shared_beginning(whole: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    writer = Writer(
        MambaForCausalLM(config).eval(),
        tokenizer,
        settings={"max_new_tokens": 2},
        stop=None,
        precision="fp32",
    )
    prompts = [tokenizer("the order is here to help and " + text)["input_ids"] for text in ("red", "blue")]
    assert writer._prefix(prompts) is None
    assert len(writer.write_alone(prompts, 2)) == 2


def test_generated_labels_can_be_kept_to_the_candidates(
    asking: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    free = ftkit.evaluate(asking(answer="generate", num_fewshot=1) | {"output_dir": str(tmp_path / "free")})
    assert free.metrics["details"]["unreadable"]["rows"] > 0, "a random model writes anything"
    for architecture in ("gpt2", "t5"):
        tree = asking(architecture, answer="generate", num_fewshot=1, constrained=True)
        kept = ftkit.evaluate(tree | {"output_dir": str(tmp_path / architecture)})
        assert "unreadable" not in kept.metrics["details"]
        assert {row["prediction"] for row in rows(kept.run)} <= set(LABELS)


def test_a_kept_answer_does_not_repeat_the_end_of_the_prompt(
    asking: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line end after `Colour:` has been read; what follows is a label."""
    tries = []
    trie = Generating._trie
    monkeypatch.setattr(Generating, "_trie", lambda *its: tries.append(trie(*its)) or tries[-1])
    way = {"template": "Text: {{ text }}\nColour:\n", "target_delimiter": ""}
    run = ftkit.evaluate(asking(answer="generate", constrained=True, **way)).run
    tokenizer = AutoTokenizer.from_pretrained(run.recipe.model.name)
    for one in tries:
        assert {tokenizer.decode([token]) for token in one[()]} == {label[0] for label in LABELS}


def test_how_texts_are_written_is_recorded(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also what no recipe says, but the model's own configuration."""
    folder = tmp_path / "own"
    shutil.copytree(whole("gpt2"), folder)
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(own | {"typical_p": 0.9, "repetition_penalty": 1.3})
    )
    tree = asking(prompt="intent", answer="generate") | {"model": {"name_or_path": str(folder)}}
    run = ftkit.evaluate(tree | {"generation": {"max_new_tokens": 3, "top_k": 5, "do_sample": True}}).run
    said = dict(run.manifest["generation"])
    assert run.metrics["generation"] == said
    assert (said.pop("until"), said.pop("constrained")) == (["\n\n"], False)
    # A label is no free text, whose repetitions a checkpoint may want less of.
    given = {"max_new_tokens": 3, "do_sample": True, "top_k": 5, "num_beams": 1, **NO_RULES}
    assert said | given | {"typical_p": 0.9, "eos_token_id": [0], "pad_token_id": 0} == said
    # As transformers has it, defaults aside.
    settings = GenerationConfig(**given, eos_token_id=[0], pad_token_id=0, use_cache=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    effective = model._prepare_generation_config(settings)[0].to_dict()
    assert {name: effective[name] for name in said} == said
    ranked = ftkit.evaluate(asking() | {"output_dir": str(tmp_path / "ranked")}).run
    assert ranked.manifest["generation"] == {}
    assert "generation" not in ranked.metrics


ENTITY_ROWS = [
    {"tokens": ["Ann", "Lee", "lives", "in", "Oslo"], "ner_tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]},
    {"tokens": ["the", "red", "card"], "ner_tags": ["O", "O", "O"]},
    {"tokens": ["Oslo", "is", "good"], "ner_tags": ["B-LOC", "O", "O"]},
]


@pytest.mark.parametrize("entity_format", ["lines", "json"])
def test_entities_are_asked_for_and_found_again(
    entity_format: str, asking: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        lines = [json.dumps(row) + "\n" for row in ENTITY_ROWS]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    prompt = {"lines": "instructed", "json": "entities"}[entity_format]
    tree = asking(prompt=prompt, num_fewshot=2, entity_format=entity_format, shots="fixed")
    tree["generation"] = {"max_new_tokens": 16}
    tree |= {"task": "ner", "data": {s + "_file": str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}}
    evaluation = ftkit.evaluate(tree)
    assert evaluation.metrics["details"]["unreadable"]["rows"] > 0
    (one,) = explained(evaluation.run, ["Ann is in Oslo"])
    written = {"lines": "PER: Ann Lee\nLOC: Oslo", "json": '{"type": "PER", "text": "Ann Lee"}'}
    assert written[entity_format] in one["prompt"]
    assert ("The types: LOC, PER." in one["prompt"]) == (prompt == "instructed")
    # A perfect model's answers score 1.
    from ftkit.dataset import load_records
    from ftkit.estimator import finished_estimator
    from ftkit.scoring import score

    run = evaluation.run
    dataset = load_records(run.recipe.data, run.recipe.task)
    questions = finished_estimator(run).solvers[""].answerer.prompting.questions  # type: ignore[attr-defined]
    records = dataset["test"]
    answers = [questions.read(questions.write(record) + "\n\nText: more", record) for record in records]
    perfect = [questions.read(questions.write(record), record) for record in records]
    assert not any(answer.failed for answer in perfect)
    assert score(perfect, records, run.recipe.metrics, dataset.labels, "test").metrics["entity_f1"].value == 1
    assert len(answers) == 3


def test_texts_and_instructions_are_asked_for(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"the {c} card", "target": f"{c} money"}) + "\n" for c in LABELS)
    )
    files = {"train_file": str(tmp_path / "rows.jsonl"), "test_file": str(tmp_path / "rows.jsonl")}
    tree = asking(prompt="input_output", num_fewshot=1) | {"task": "text2text", "data": files}
    tree["metrics"] = ["answer_loss", "rouge_l", "exact_match"]
    tree["generation"] = {"max_new_tokens": 6}
    run = ftkit.evaluate(tree).run
    # The loss of the right answers is that of plain transformers code.
    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    model = AutoModelForCausalLM.from_pretrained(whole("gpt2")).eval()
    total, tokens = 0.0, 0
    for one, colour in zip(explained(run, [f"the {c} card" for c in LABELS]), LABELS, strict=True):
        ids = tokenizer(one["prompt"] + f"{colour} money", return_tensors="pt")["input_ids"]
        start = len(tokenizer(one["prompt"].rstrip())["input_ids"])
        with torch.inference_mode():
            logs = model(ids).logits[0].log_softmax(dim=-1)
        total -= sum(logs[n - 1, ids[0, n]].item() for n in range(start, ids.shape[1]))
        tokens += ids.shape[1] - start
    assert run.metrics["metrics"]["answer_loss"]["value"] == pytest.approx(total / tokens, abs=1e-4)


def test_right_texts_that_do_not_fit_have_no_loss(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GPT-2 has no more positions; what the model itself writes fits."""
    found = {}
    rows = [{"text": "the card", "target": "red"}, {"text": "the card", "target": "red " * 80}]
    for name, part in (("both", rows), ("first", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        tree = asking(prompt="input_output") | {"task": "text2text", "metrics": ["answer_loss"]}
        tree |= {"generation": {"max_new_tokens": 2}, "output_dir": str(tmp_path / f"run-{name}")}
        run = ftkit.evaluate(tree | {"data": {"test_file": str(tmp_path / f"{name}.jsonl")}}).run
        found[name] = run.metrics["metrics"]["answer_loss"]["value"]
    assert "1 right texts have no loss: with their prompts they are longer than 256 tokens" in caplog.text
    assert found["both"] == pytest.approx(found["first"], abs=1e-6)


def test_chat_goes_by_the_template_of_the_recipe(
    asking: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    template = "{% for m in messages %}({{ m.role }}) {{ m.content }}\n{% endfor %}(assistant)"
    messages = [{"role": "user", "content": "the red card"}, {"role": "assistant", "content": "money"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    tree = asking(style="chat", prompt="plain") | {"data": {"test_file": str(tmp_path / "rows.jsonl")}}
    tree |= {"task": {"type": "instruction", "chat_template": template}, "metrics": ["exact_match"]}
    run = ftkit.evaluate(tree | {"generation": {"max_new_tokens": 2}}).run
    (one,) = explained(run, ["the red card"])
    assert "(user) the red card" in one["prompt"]
    assert one["prompt"].endswith("(assistant)")


def test_chat_puts_shots_into_earlier_turns(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(FtkitError, match="chat template"):
        ftkit.evaluate(asking(style="chat"))
    folder = tmp_path / "chatty"
    tokenizer = AutoTokenizer.from_pretrained(whole("llama"))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(whole("llama")).save_pretrained(folder)
    tree = asking(style="chat", num_fewshot=1, description="Labels: {{ labels }}", template="{{ text }}")
    run = ftkit.evaluate(tree | {"model": {"name_or_path": str(folder)}}).run
    (one,) = explained(run, ["the red card"])
    shot = one["shots"][0]
    turns = [
        {"role": "system", "content": "Labels: blue, green, red"},
        {"role": "user", "content": shot["fields"]["text"]},
        {"role": "assistant", "content": shot["answer"]},
        {"role": "user", "content": "the red card"},
    ]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert one["prompt"] == expected


# Multiple choice ------------------------------------------------------------------------------

QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "which card",
        "choices": {"text": ["red card", "my phone"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    {
        "question": "what money",
        "choices": {"text": ["good", "not good", "film"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
]


def test_multiple_choice(
    asking: Callable[..., dict[str, Any]], whole: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    tree = asking(prompt="question") | {
        "task": "multiple_choice",
        "data": {"test_file": str(tmp_path / "test.jsonl")},
    }
    evaluation = ftkit.evaluate(tree)
    tokenizer = AutoTokenizer.from_pretrained(whole("gpt2"))
    model = AutoModelForCausalLM.from_pretrained(whole("gpt2")).eval()
    found = rows(evaluation.run)
    assert [row["target"] for row in found] == ["my phone", "film"]
    for row, question in zip(found, QUESTIONS, strict=True):
        context = f"Question: {question['question']}\nAnswer:"
        scores = {}
        for choice in question["choices"]["text"]:
            ids = tokenizer(f"{context} {choice}", return_tensors="pt")["input_ids"]
            start = len(tokenizer(context)["input_ids"])
            with torch.inference_mode():
                logs = model(ids).logits[0].log_softmax(dim=-1)
            scores[choice] = sum(logs[n - 1, ids[0, n]].item() for n in range(start, ids.shape[1]))
        assert row["scores"] == pytest.approx(softmax(scores), abs=1e-4)
        assert row["prediction"] == max(scores, key=scores.__getitem__)


WRONG_ROWS = {
    "one choice": ({"choices": ["a"]}, "the choices are"),
    "twice": ({"choices": ["a", "a"]}, "two choices are 'a'"),
    "none of them": ({"answerKey": "E"}, "the answer 'E' is none of the 2 choices"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_questions(name: str, asking: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    change, says = WRONG_ROWS[name]
    row = {"question": "which", "choices": ["a", "b"], "answerKey": "A"} | change
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    tree = asking(prompt="question") | {
        "task": "multiple_choice",
        "data": {"test_file": str(tmp_path / "test.jsonl")},
    }
    with pytest.raises(FtkitError, match=re.escape(says)) as caught:
        ftkit.evaluate(tree)
    assert "test.jsonl:1" in str(caught.value)


# What goes wrong --------------------------------------------------------------------------------


def test_a_killed_run_goes_on(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit.prompts import solver
    from ftkit.prompts.answering import Ranking

    expected = rows(ftkit.evaluate(asking() | {"output_dir": str(tmp_path / "whole")}).run)
    monkeypatch.setattr(solver, "_CHUNK", 4)
    say, asked = Ranking.say, []

    def killed(self: Ranking, questions: Any) -> Any:
        if len(asked) >= 8:
            raise KeyboardInterrupt
        asked.extend(questions)
        return say(self, questions)

    monkeypatch.setattr(Ranking, "say", killed)
    tree = asking() | {"output_dir": str(tmp_path / "killed")}
    with pytest.raises(KeyboardInterrupt):
        ftkit.evaluate(tree)
    more: list[Any] = []
    monkeypatch.setattr(
        Ranking, "say", lambda self, questions: more.extend(questions) or say(self, questions)
    )
    run = ftkit.evaluate(tree).run
    assert len(asked) == 8
    assert len(more) == len(expected) - 8
    assert rows(run) == expected


def test_a_journal_bears_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    from ftkit.prompts.solver import Journal

    path = tmp_path / "answers.jsonl"
    said = "one\u2028two\x85three"
    Journal(path).add(["a"], [said])
    with path.open("a") as file:
        file.write('\n{"key": "b", "sa')
    Journal(path).add(["c"], [["d", 1.5]])
    found = Journal(path)
    assert [found.get(key) for key in "abc"] == [said, None, ["d", 1.5]]


WRONG = {
    "assignment": ({"template": "{% set a = text %}{{ a }}"}, "holds an assignment"),
    "format": ({"template": "{{ '%999999999d' % 1 }}{{ text }}"}, "holds a remainder or a format"),
    "both": ({"prompt": "intent", "template": "{{ text }}"}, "stands beside prompt"),
    "no prompt": ({"prompt": "intend"}, "there is no prompt 'intend' for classification; there are: label,"),
    "seeds": ({"seeds": [1, 2], "shots": "nearest", "num_fewshot": 1}, "seeds does nothing with shots"),
    "seeds twice": (
        {"seeds": [1, 1, 2], "shots": "random", "num_fewshot": 1},
        "seeds has 1 twice",
    ),
    "constrained": ({"constrained": True}, "constrained is for answer: generate"),
    "encoder": ({"encoder": "x"}, "encoder is for shots: nearest"),
    "calibrated": ({"answer": "generate", "calibration": "batch"}, "are for answer: rank or cloze"),
    "words": ({"verbalizer": {"red": ["a", "b"], "blue": "b"}}, "two labels have the word 'b'"),
    "no word": ({"verbalizer": {"red": " "}}, "a label has a word of white space"),
    "alike": (
        {"answer": "generate", "verbalizer": {"red": "B C", "blue": "b_c"}},
        "method.answer: generate: the labels 'b_c' and 'B C' read alike",
    ),
    "description": ({"description": "{{ text }}"}, "names 'text', which it cannot"),
    "cloze": ({"answer": "cloze"}, "method prompt does not work with models of the family decoder"),
    "bomb": ({"template": "{{ text | replace('', text) | replace('', text) }}"}, "replace would"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked(name: str, asking: Callable[..., dict[str, Any]]) -> None:
    options, says = WRONG[name]
    tree = asking()
    if "prompt" in options and "template" not in options:
        del tree["method"]["template"]
    tree["method"] |= options
    if name == "bomb":
        lines = (
            json.dumps({"text": "a" * 2000, "label": "red"}) + "\n" + json.dumps({"text": "b", "label": "x"})
        )
        folder = Path(tree["output_dir"]).parent
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "long.jsonl").write_text(lines + "\n")
        tree["data"] = {"train_file": str(folder / "long.jsonl"), "test_file": str(folder / "long.jsonl")}
    with pytest.raises(FtkitError) as caught:
        ftkit.evaluate(tree)
    assert says in str(caught.value)


def test_a_candidate_without_a_token(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, ftkit: Callable[..., Any]
) -> None:
    tree = asking("bert", template="{{ text }} is {{ mask }}", answer="cloze", verbalizer={"red": "\u200b"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    done = ftkit("eval", "recipe.yaml")
    assert done.returncode == 3
    assert "test.csv:2: the answer '\\u200b' has no token of its own" in done.stderr


def test_shots_need_a_training_split(asking: Callable[..., dict[str, Any]], colours: Path) -> None:
    tree = asking(num_fewshot=1) | {"data": {"test_file": str(colours / "test.csv")}}
    with pytest.raises(FtkitError, match=r"labels are not known[\s\S]*task.labels"):
        ftkit.evaluate(tree)
    tree["task"] = {"type": "classification", "labels": LABELS}
    with pytest.raises(FtkitError, match="1 shots are asked for, the training split is empty"):
        ftkit.evaluate(tree)
    tree["method"]["num_fewshot"] = 0
    assert ftkit.evaluate(tree).metrics["rows"] == 15


def test_one_question_with_two_right_texts_has_two_losses(
    asking: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"text": "the card", "target": "red"}, {"text": "the card", "target": "my good money"}]
    for name, part in (("both", rows), ("first", rows[:1]), ("second", rows[1:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    found = {}
    for name in ("both", "first", "second"):
        tree = asking(prompt="input_output") | {"task": "text2text", "metrics": ["answer_loss"]}
        tree |= {"generation": {"max_new_tokens": 2}, "output_dir": str(tmp_path / f"run-{name}")}
        tree["data"] = {"test_file": str(tmp_path / f"{name}.jsonl")}
        found[name] = ftkit.evaluate(tree).metrics["metrics"]["answer_loss"]["value"]
    short, long = len("red") + 1, len("my good money") + 1  # letters are tokens here, and a space before them
    mean = (found["first"] * short + found["second"] * long) / (short + long)
    assert found["both"] == pytest.approx(mean, abs=1e-4)


def test_batch_calibration_and_pmi_go_together(asking: Callable[..., dict[str, Any]]) -> None:
    run = ftkit.evaluate(asking(calibration="batch", normalization="pmi", num_fewshot=1)).run
    (one,) = explained(run, ["the red card"])
    assert sum(probabilities(one).values()) == pytest.approx(1)


def test_answers_that_begin_with_another_one_are_said(
    asking: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    words = {"red": "card", "blue": "card money", "green": "cards"}
    ftkit.evaluate(asking(verbalizer=words))
    assert "2 answers begin with another one" in caplog.text
    caplog.clear()
    tree = asking("t5", verbalizer=words)
    ftkit.evaluate(tree | {"output_dir": tree["output_dir"] + "-t5"})
    assert "begin with another one" not in caplog.text, "its answers have an end token"


def test_shots_and_calibration_follow_the_seed_of_the_recipe(
    asking: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftkit.prompts.estimator._CALIBRATION_ROWS", 5)
    saved = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        tree = asking(num_fewshot=2, shots="random", calibration="batch")
        run = ftkit.evaluate(tree | {"seed": seed, "output_dir": str(tmp_path / name)}).run
        saved.append(json.loads((run.folder / "model/prompt.json").read_text())[0])
    first, again, other = saved
    assert first == again
    assert [shot["why"] for shot in other["shots"]] == ["drawn with seed 2"] * 2
    assert first["shots"] != other["shots"]
    assert first["prior"] != other["prior"]


def test_one_question_with_two_sets_of_choices_has_two_answers(
    asking: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    choices = [["red", "blue"], ["red", "my money", "green"]]
    lines = [json.dumps({"question": "which", "choices": one, "answer": "red"}) for one in choices]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    tree = asking(prompt="question") | {
        "task": "multiple_choice",
        "data": {"test_file": str(tmp_path / "test.jsonl")},
    }
    assert [list(row["scores"]) for row in rows(ftkit.evaluate(tree).run)] == choices


def test_embeddings_are_compared_by_the_cosine_of_their_means(tiny: Callable[[str], Path]) -> None:
    """Each text embedded by itself; together, padding and batches change nothing."""
    model, tokenizer = (
        AutoModel.from_pretrained(tiny("bert")).eval(),
        AutoTokenizer.from_pretrained(tiny("bert")),
    )
    pool = [
        "the red card",
        "a much longer text about the blue phone of my good friend",
        "money",
        "a red card",
    ]
    queries = ["red card", "the phone is blue and the film is good with that game", "money back"]

    def vector(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt"))["last_hidden_state"][0].mean(dim=0)

    found = Embeddings(pool, Loaded(model, tokenizer, (), 64)).nearest(queries, 3)
    for query, near in zip(queries, found, strict=True):
        scores = [torch.cosine_similarity(vector(query), vector(text), dim=0).item() for text in pool]
        assert [place for place, _ in near] == numpy.argsort(scores)[::-1][:3].tolist()
        assert [score for _, score in near] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)


def test_each_query_gets_the_shots_nearest_to_it() -> None:
    pool = tuple(Shot({"text": text}, text) for text in ("red card", "blue phone", "my money", "red phone"))
    shots = NearestShots(pool, 1, Bm25([shot.answer for shot in pool]))
    found = shots.of([{"text": "the money"}, {"text": "card"}, {"text": "blue phone"}])
    # The last one is the query itself, so the next takes its place.
    assert [shot.answer for (shot,) in found] == ["my money", "red card", "red phone"]
