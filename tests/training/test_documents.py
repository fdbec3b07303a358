"""Windows, masks and corrupted spans, against plain code and the papers' rates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Tokenizer

import ftkit
from ftkit.records import Record
from ftkit.training.documents import DocumentHead
from ftkit.training.heads import IGNORED

TEXTS = ["the red ball is good", "my blue phone", "it was bad and the film was on with that game", "a"]
RECORDS = [Record(text, where=f"row {n}") for n, text in enumerate(TEXTS)]


def head_of(kind: str, folder: Path, longest: int, **options: object) -> tuple[DocumentHead, object]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    head = DocumentHead(kind, **options)
    head.prepare(tokenizer, longest)
    return head, tokenizer


def joined(tokenizer: object, architecture: str) -> list[int]:
    """All documents, each with the tokens that begin and end it."""
    begin = [tokenizer.bos_token_id] if architecture == "llama" else []
    ids = [
        [*begin, *tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for t in TEXTS
    ]
    return [token for row in ids for token in row]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("longest", [8, 13, 200])
def test_every_token_is_foretold_once(tiny: Callable, architecture: str, longest: int) -> None:
    head, tokenizer = head_of("decoder", tiny(architecture), longest)
    whole = joined(tokenizer, architecture)
    learned = []
    for row in head.training_rows(RECORDS, tokenizer, longest).features:
        assert len(row["input_ids"]) <= longest
        assert row["labels"][0] == IGNORED
        learned += [label for label in row["labels"] if label != IGNORED]
        assert all(
            label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True)
        )
    assert learned == whole[1:]


@pytest.mark.parametrize(("kind", "architecture"), [("encoder", "bert"), ("encoder_decoder", "t5")])
def test_documents_apart_end_once(kind: str, architecture: str, tiny: Callable) -> None:
    head, tokenizer = head_of(kind, tiny(architecture), 60, join=False)
    rows = head.training_rows(RECORDS[:3], tokenizer, 60).features
    assert [row["input_ids"] for row in rows] == tokenizer(TEXTS[:3])["input_ids"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_documents_apart_begin_after_an_end(tiny: Callable, architecture: str) -> None:
    """As they do where they are joined; so every token of the text is foretold, the first one as well."""
    head, tokenizer = head_of("decoder", tiny(architecture), 200, join=False)
    begin = tokenizer.bos_token_id if architecture == "llama" else tokenizer.eos_token_id
    for text, row in zip(TEXTS, head.training_rows(RECORDS, tokenizer, 200).features, strict=True):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert list(row["input_ids"]) == [begin, *ids]
        assert list(row["labels"]) == [IGNORED, *ids]


@pytest.mark.parametrize("longest", [6, 12, 200])
def test_bytes_go_where_the_losses_of_joined_documents_do(tiny: Callable, longest: int) -> None:
    head, tokenizer = head_of("decoder", tiny("gpt2"), longest)
    encoded = head.encode(RECORDS, tokenizer, longest)
    found = [one.value for one in head.predictions(RECORDS, encoded, [(1.0, 1)] * len(encoded.owners))]
    assert sum(one.octets for one in found) == sum(map(len, TEXTS))
    assert [bool(one.octets) for one in found] == [bool(one.tokens) for one in found]


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_sliding_windows_equal_a_plain_loop(still: Callable, stride: int) -> None:
    """Each token's loss with as much context as a window gives, computed by itself."""
    folder, longest = still("gpt2"), 12
    head, tokenizer = head_of("decoder", folder, longest, stride=stride)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    whole = joined(tokenizer, "gpt2")
    encoded = head.encode(RECORDS, tokenizer, longest)
    ours = 0.0
    for row in encoded.features:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        ours += head.outputs(model, {"input_ids": ids}, labels).sum().item()
    plain, count = 0.0, 0
    for place in range(1, len(whole)):
        # The first window scores all of its tokens, each later one its last `stride`.
        number = 0 if place < longest else (place - longest) // stride + 1
        start = number * stride
        logits = model(torch.tensor([whole[start:place]])).logits[0, -1]
        plain += -logits.log_softmax(-1)[whole[place]].item()
        count += 1
    assert sum(label != IGNORED for row in encoded.features for label in row["labels"]) == count
    assert ours == pytest.approx(plain, rel=1e-5)


def test_what_stands_between_documents_is_not_guessed(tiny: Callable) -> None:
    head, tokenizer = head_of("encoder", tiny("bert"), 64)
    rows = head.training_rows(RECORDS * 50, tokenizer, 64).features
    found = [head.vary(row, (0, 0, number)) for number, row in enumerate(rows)]
    learned = [label for row in found for label in row["labels"] if label != IGNORED]
    assert tokenizer.sep_token_id not in learned
    before = sum(token == tokenizer.sep_token_id for row in rows for token in row["input_ids"])
    assert sum(token == tokenizer.sep_token_id for row in found for token in row["input_ids"]) >= before
    words = sum(len(row["input_ids"]) for row in rows) - before - len(rows)
    assert len(learned) == pytest.approx(0.15 * words, rel=0.05)


def test_sentinels_that_are_words(tiny: Callable) -> None:
    """As in mT5's vocabulary."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    words += [(letter, -3.0) for letter in "abcdefghij"]
    words += [(f"\N{LOWER ONE EIGHTH BLOCK}<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    tokenizer = T5Tokenizer(vocab=words, extra_ids=0, additional_special_tokens=None)
    head = DocumentHead("encoder_decoder")
    head.prepare(tokenizer, 64)
    assert head.special.sentinels[:2] == (len(words) - 1, len(words) - 2)
    assert len(head.special.sentinels) == 100


def test_masks_have_the_rates_of_the_paper(tiny: Callable) -> None:
    """15 % of the tokens; 80 % of these masked, 10 % random, 10 % as they are (Devlin et al., 2019)."""
    head, tokenizer = head_of("encoder", tiny("bert"), 64)
    records = [Record("the red ball is good " * 40)] * 20
    rows = head.training_rows(records, tokenizer, 64).features
    tokens = chosen = masked = same = 0
    for number, row in enumerate(rows):
        seen = head.vary(row, (1, 0, number))
        assert seen == head.vary(row, (1, 0, number)) != head.vary(row, (1, 1, number))
        for before, token, label in zip(row["input_ids"], seen["input_ids"], seen["labels"], strict=True):
            special = before in tokenizer.all_special_ids
            tokens += not special
            if label == IGNORED:
                assert token == before
                continue
            assert label == before
            chosen += 1
            masked += token == tokenizer.mask_token_id
            same += token == before
    assert chosen / tokens == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.04)
    assert same / chosen == pytest.approx(0.1, abs=0.03)


def test_spans_are_those_of_t5(tiny: Callable) -> None:
    """15 % corrupted in spans of 3 on average, text and spans put back together (Raffel et al., 2020)."""
    head, tokenizer = head_of("encoder_decoder", tiny("t5"), 200)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(20)]
    records = [Record("the red ball is good and bad " * 30)] * 20
    rows = head.training_rows(records, tokenizer, 200).features
    tokens = corrupted = spans = longest = 0
    for number, row in enumerate(rows):
        seen = head.vary(row, (1, 0, number))
        assert len(seen["input_ids"]) <= 200
        longest = max(longest, len(seen["input_ids"]))
        assert seen["labels"][-1] == tokenizer.eos_token_id == seen["input_ids"][-1]
        written: dict[int, list[int]] = {}
        for token in seen["labels"][:-1]:
            if token in sentinels:
                assert token == sentinels[len(written)], "sentinels stand in order, each once"
                written[token] = []
            else:
                written[list(written)[-1]].append(token)
        together = []
        for token in seen["input_ids"]:
            together += written.pop(token) if token in written else [token]
        assert together == row["input_ids"]
        assert not written
        tokens += len(row["input_ids"]) - 1
        corrupted += sum(token not in sentinels for token in seen["labels"]) - 1
        spans += sum(token in sentinels for token in seen["labels"])
    assert corrupted / tokens == pytest.approx(0.15, abs=0.015)
    assert corrupted / spans == pytest.approx(3.0, abs=0.25)
    assert longest >= 198, "so much is read that what is left fills the window"


@pytest.mark.parametrize(
    ("architecture", "documents"),
    [("gpt2", "packed"), ("llama", "separate"), ("bert", "packed"), ("t5", "packed")],
)
def test_loss_falls_and_a_prediction_is_a_loss(
    tiny: Callable, tmp_path: Path, architecture: str, documents: str
) -> None:
    (tmp_path / "train.txt").write_text("the red ball is good. " * 60)
    (tmp_path / "test.jsonl").write_text('{"text": "the red ball is good. the red ball"}\n')
    tree = {
        "task": {"type": "language_modeling", "documents": documents},
        "model": {"name_or_path": str(tiny(architecture)), "max_length": 32},
        "data": {"train_file": str(tmp_path / "train.txt"), "test_file": str(tmp_path / "test.jsonl")},
        "method": "full",
        "training": {"max_steps": 25, "learning_rate": 1e-2, "per_device_train_batch_size": 8},
        "engine": {"precision": "fp32"},
        "output_dir": str(tmp_path / "run"),
    }
    run = ftkit.finetune(tree)
    # A model that knows nothing has the size of its vocabulary: some 260 bytes, or 140 pieces.
    assert run.metrics["metrics"]["perplexity"]["value"] < 40
    (known,) = ftkit.predict(run, ["the red ball is good. the red ball"])
    (unknown,) = ftkit.predict(run, ["$$ kqx zzz ## vvv jjj"])
    assert known.value.loss / known.value.tokens < unknown.value.loss / unknown.value.tokens


def test_bits_per_byte(tiny: Callable, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the red ball is good. " * 20)
    (tmp_path / "test.txt").write_text("the blue ball")
    tree = {
        "task": "language_modeling",
        "model": {"name_or_path": str(tiny("gpt2")), "max_length": 32},
        "data": {"train_file": str(tmp_path / "train.txt"), "test_file": str(tmp_path / "test.txt")},
        "method": "full",
        "metrics": ["answer_loss", "perplexity", "bits_per_byte"],
        "training": {"max_steps": 1},
        "engine": {"precision": "fp32"},
        "output_dir": str(tmp_path / "run"),
    }
    found = {name: score["value"] for name, score in ftkit.finetune(tree).metrics["metrics"].items()}
    # 13 bytes and the end token, the first of them not foretold: 13 tokens.
    assert found["perplexity"] == pytest.approx(math.exp(found["answer_loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["answer_loss"] * 13 / math.log(2) / 13)
    # Many short documents in few windows: the bytes of all are counted.
    short = tmp_path / "short.jsonl"
    words = "the red ball is a".split()
    short.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    scores = ftkit.evaluate(tmp_path / "run", [f"data.test_file={short}"]).metrics["metrics"]
    bits = scores["answer_loss"]["value"] / math.log(2)
    # 13 bytes, and an end token after each of the five documents; the first token is not foretold.
    assert scores["bits_per_byte"]["value"] == pytest.approx(bits * (13 + 5 - 1) / 13)
    # Of one of joined documents there is no such number: its tokens are foretold in another's window.
    saved = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert not any("bits_per_byte" in row for row in saved)
    # What is predicted for is read by itself, whatever stands beside it.
    texts = [*words, "the red ball is a ball and a ball is red"]
    found = [one.value for one in ftkit.predict(tmp_path / "run", texts)]
    turned = [one.value for one in ftkit.predict(tmp_path / "run", texts[::-1])][::-1]
    assert [(one.tokens, one.octets) for one in found] == [(one.tokens, one.octets) for one in turned]
    assert [one.loss for one in found] == pytest.approx([one.loss for one in turned], abs=1e-4)
    assert [one.octets for one in found] == [len(text) for text in texts]
    for key, value, message in [
        ("metrics", ["bits_per_byte"], "needs a decoder"),
        ("task", {"type": "language_modeling", "stride": 4}, "stride is for decoders"),
    ]:
        other = tree | {"model": {"name_or_path": str(tiny("bert"))}, "metrics": [], key: value}
        with pytest.raises(ftkit.errors.UsageError, match=message):
            ftkit.finetune(other | {"output_dir": str(tmp_path / key)})


@pytest.mark.parametrize("join", [True, False])
def test_bytes_are_those_of_utf8(join: bool, tiny: Callable) -> None:
    head, tokenizer = head_of("decoder", tiny("gpt2"), 200, join=join)
    records = [Record("größe"), Record("漢字 \N{GRINNING FACE}")]
    encoded = head.encode(records, tokenizer, 200)
    found = [one.value for one in head.predictions(records, encoded, [(1.0, 1)] * len(encoded.owners))]
    assert sum(one.octets for one in found) == 7 + 11
