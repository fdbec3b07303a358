"""Batches without padding give what padded ones give, with every architecture that can have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import write_colours
from training.test_gradients import engine_gradients
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    FalconH1Config,
    FalconH1ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

import ftkit
from ftkit.training import estimator
from ftkit.training.unpadded import (
    Unpadded,
    _before_labelled,
    _first,
    _labelled,
    _last,
    unpadded_as_padded,
)

Folder = Callable[[str], Path]
LENGTHS = [3, 40, 17, 16, 9, 33, 20, 5]
ENCODERS = ["bert", "distilbert", "roberta", "electra", "modernbert"]
DECODERS = ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "opt"]


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of random tokens."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.arange(max(LENGTHS))
    mask = torch.stack([columns < length for length in LENGTHS]).long()
    mask = mask if side == "right" else mask.flip(1)
    ids = torch.randint(5, 40, mask.shape, generator=generator)
    # Classifiers on decoders find the last token by the padding.
    return {"input_ids": torch.where(mask == 1, ids, 0), "attention_mask": mask}


def load(folder: Path) -> Any:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=0).eval()


def losses(model: Any) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    return lambda inputs: model(**inputs).logits.logsumexp(dim=1) - model(**inputs).logits[:, 0]


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    targets = torch.arange(len(LENGTHS)) % 3
    torch.nn.functional.cross_entropy(model(**inputs).logits, targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> None:
    """Per tensor: |d| <= 1e-5 |g| + 1e-6 |g of all|."""
    assert ours.keys() == plain.keys()
    whole = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    for name, gradient in plain.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_an_architecture(architecture: str, checkpointing: bool, still: Folder) -> None:
    model, inputs = load(still(architecture)), batch()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    plain = gradients(model, inputs)
    found = Unpadded.of(model)
    assert found is not None
    seen: list[torch.Size] = []
    norms = [m for m in found.blocks[-1].modules() if "norm" in type(m).__name__.lower()]
    hook = norms[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    with found.rows(inputs):
        ours = gradients(model, inputs)
    hook.remove()
    assert_same(ours, plain)
    assert {shape[:2] for shape in seen} == {(1, -(-sum(LENGTHS) // 16) * 16)}, "real tokens, and a few"
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    assert_same(gradients(model, inputs), plain)  # and nothing is left behind


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        *((name, "right") for name in [*ENCODERS, *DECODERS]),
        # Others count their positions from the first column.
        *((name, "left") for name in DECODERS if name not in {"gpt2", "opt"}),
    ],
)
def test_the_last_block_computes_what_a_classifier_reads(
    architecture: str, side: str, checkpointing: bool, still: Folder
) -> None:
    """One token a row after attention, with the same gradients."""
    model, inputs = load(still(architecture)), batch(side)
    found = unpadded_as_padded(model, inputs, lambda given: model(**given).logits.sum(1), 1e-5)
    assert found is not None
    assert found.read is (_first if architecture in ENCODERS else _last)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    plain = gradients(model, inputs)
    widths: list[int] = []
    for module in found.blocks[-1].modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            module.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-2]))
    with found.rows(inputs):
        ours = gradients(model, inputs)
    assert_same(ours, plain)
    if architecture == "gpt_neox":
        # Attention and what elsewhere comes after it stand side by side.
        assert 16 in widths
    else:
        assert {*widths[-3:]} == {16}
    assert_same(gradients(model, inputs), plain)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "gpt_neox", "opt"])
def test_the_last_block_computes_what_an_answer_is_learned_from(
    architecture: str, masked: bool, still: Folder
) -> None:
    """Labels of the last tokens of each row; in a batch without padding, too."""
    torch.manual_seed(1)
    kind = AutoModelForMaskedLM if architecture == "bert" else AutoModelForCausalLM
    model, inputs = kind.from_pretrained(still(architecture), pad_token_id=0).eval(), batch()
    ends = inputs["attention_mask"].cumsum(1) > torch.tensor([[n - n // 3] for n in LENGTHS])
    inputs["labels"] = torch.where(ends & (inputs["attention_mask"] == 1), inputs["input_ids"], -100)
    if not masked:
        inputs = {name: values[1:2].repeat(3, 1) for name, values in inputs.items()}

    def rows(given: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = given["labels"] if architecture == "bert" else given["labels"][:, 1:]
        plain = {name: values for name, values in given.items() if name != "labels"}
        logits = model(**plain).logits[:, : labels.shape[1]].transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum(1)

    expected = _labelled if architecture == "bert" else _before_labelled
    found = unpadded_as_padded(model, batch_of_answers(inputs) if not masked else inputs, rows, 1e-5)
    assert found is not None
    assert found.read is expected
    model.zero_grad()
    rows(inputs).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    norms = [m for m in found.blocks[-1].modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    seen: list[int] = []
    norms[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2]))
    with found.rows(inputs):
        rows(inputs).sum().backward()
    assert_same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, plain)
    count = int((inputs["labels"] != -100).sum())
    assert architecture == "gpt_neox" or seen[-1] in {(count // 16 + 1) * 16, (count // 16 + 2) * 16}, seen


def batch_of_answers(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same rows, one of them shorter by its first half."""
    found = {name: values.clone() for name, values in inputs.items()}
    half = inputs["input_ids"].shape[1] // 2
    for name, padding in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        found[name][0] = torch.cat([inputs[name][0, half:], torch.full((half,), padding)])
    return found


def test_a_model_that_reads_all_tokens_computes_all(still: Folder) -> None:
    model, inputs = load(still("bert")), batch()
    mean = model.bert(**inputs).last_hidden_state

    def pooled(given: dict[str, torch.Tensor]) -> torch.Tensor:
        states, mask = model.bert(**given).last_hidden_state, given["attention_mask"]
        return (states * mask[..., None]).sum((1, 2)) / mask.sum(1)

    found = unpadded_as_padded(model, inputs, pooled, 0.5)
    assert found is not None
    assert found.read is None
    with found.rows(inputs):
        states = model.bert(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(states[real], mean[real])


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "llama", "modernbert", "bert"])
@pytest.mark.parametrize("kind", ["labels", "numbers", "all"])
def test_what_is_read_is_known_in_bf16(architecture: str, kind: str, still: Folder) -> None:
    """Losses of a new head are nearly the same whatever it reads, and a last norm makes 0 of any constant."""
    model, inputs = load(still(architecture)), batch()
    pair = {name: values[[0, 2]] for name, values in inputs.items()}

    def rows(given: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if kind == "all":
                states = model.base_model(**given).last_hidden_state.float()
                return 1000 + (states[..., 0] * given["attention_mask"]).sum(1) / given["attention_mask"].sum(
                    1
                )
            logits = model(**given).logits.float()
        if kind == "numbers":
            return (logits[:, 0] - 100) ** 2
        return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")

    found = unpadded_as_padded(model, pair, rows, 0.2)
    assert found is not None
    encoder = architecture in ENCODERS
    assert found.read is (None if kind == "all" else _first if encoder else _last)


def test_rows_that_count_nothing_tell_nothing(still: Folder) -> None:
    """As those of a class of weight 0."""
    model, inputs = load(still("gpt2")), batch()
    found = unpadded_as_padded(model, inputs, lambda given: 0 * model(**given).logits.sum(1), 1e-5)
    assert found is not None
    assert found.read is None


def test_first_tokens_that_alone_have_labels_are_no_rule(still: Folder) -> None:
    """Rows of a word each would let a token classifier pass for one that reads its first token."""
    torch.manual_seed(1)
    model = AutoModelForTokenClassification.from_pretrained(still("gpt2"), num_labels=3).eval()
    inputs = {name: values[[0, 2]] for name, values in batch().items()}
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    inputs["labels"][:, 0] = 1

    def rows(given: dict[str, torch.Tensor]) -> torch.Tensor:
        plain = {name: values for name, values in given.items() if name != "labels"}
        logits = model(**plain).logits.transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, given["labels"], reduction="none").sum(1)

    found = unpadded_as_padded(model, inputs, rows, 1e-5)
    assert found is not None
    assert found.read is _labelled


def test_a_text_that_ends_in_the_padding_token(still: Folder) -> None:
    """transformers' classifiers on decoders go by the token, not by the mask."""
    model, inputs = load(still("llama")), batch()
    found = unpadded_as_padded(model, inputs, lambda given: model(**given).logits.sum(1), 1e-5)
    assert found is not None
    for row, length in enumerate(LENGTHS):
        inputs["input_ids"][row, length - 1] = 0 if row % 2 else 7
    plain = gradients(model, inputs)
    with found.rows(inputs) as left_out:
        assert_same(gradients(model, inputs), plain)
    assert left_out > 0


def summed(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.as_tensor(model(**given).logits.sum(1))


@pytest.mark.parametrize("rows", [[0, 1], [0, 7]])
def test_the_matrices_that_fewer_tokens_go_through(rows: list[int], still: Folder) -> None:
    """Each once, also with adapters; and where the rows that are looked at are short."""
    model = load(still("bert"))
    inputs = {name: values[rows] for name, values in batch().items()}
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    for one in (model, adapted):
        found = unpadded_as_padded(one.eval(), inputs, partial(summed, one), 1e-5)
        assert found is not None
        assert len({id(weight) for weight in found.after}) == len(found.after)
        names = {id(p): name for name, p in found.blocks[-1].named_parameters()}
        assert any("intermediate.dense" in names[id(weight)] for weight in found.after)
        assert not any("attention.self" in names[id(weight)] for weight in found.after)


def test_a_stopped_step_leaves_nothing_behind(still: Folder) -> None:
    model, inputs = load(still("bert")), batch()
    found = unpadded_as_padded(model, inputs, lambda given: model(**given).logits.sum(1), 1e-5)
    assert found is not None

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = found.blocks[-1].output.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), found.rows(inputs):
        model(**inputs)
    hook.remove()
    assert not torch.overrides._get_current_function_mode_stack()
    assert not found.blocks[-1]._forward_hooks


def test_padding_on_the_left(still: Folder) -> None:
    model, inputs = load(still("llama")), batch("left")
    plain, found = gradients(model, inputs), Unpadded.of(model)
    assert found is not None
    with found.rows(inputs):
        assert_same(gradients(model, inputs), plain)


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_an_architecture_that_says_the_same(architecture: str, still: Folder) -> None:
    model = load(still(architecture))
    assert unpadded_as_padded(model, batch(), losses(model), 1e-5) is None, "two passes attend twice"
    assert unpadded_as_padded(model, batch(), lambda inputs: model(**inputs).logits.sum(1), 1e-5)


@pytest.mark.parametrize("architecture", ["deberta-v2", "t5", "bart", "bloom"])
def test_an_architecture_that_attends_by_other_means(architecture: str, still: Folder) -> None:
    model, inputs = load(still(architecture)), batch()
    inputs["input_ids"][:, -1] = inputs["input_ids"][:, 2] = model.config.eos_token_id or 1
    inputs["attention_mask"][:, -1] = 1
    assert unpadded_as_padded(model, inputs, lambda given: model(**given).logits.sum(1), 1e-5) is None


@pytest.mark.parametrize("share", [1.0, 1e-4])
def test_a_model_that_mixes_tokens_elsewhere_is_found_out(share: float, still: Folder) -> None:
    model = load(still("bert"))
    dense = model.bert.encoder.layer[0].intermediate
    dense.register_forward_hook(lambda _, __, output: output + share * output.roll(1, dims=1))
    assert unpadded_as_padded(model, batch(), lambda inputs: model(**inputs).logits.sum(1), 0.1) is None


def test_a_model_with_convolutions_is_found_out() -> None:
    """Attention and a state-space model side by side in each block: only the tokens of others tell."""
    torch.manual_seed(1)
    config = FalconH1Config(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_chunk_size=16, mamba_expand=1,
    )  # fmt: skip
    model = FalconH1ForCausalLM(config).eval()
    assert Unpadded.of(model) is not None
    assert unpadded_as_padded(model, batch(), lambda given: model(**given).logits.sum((1, 2)), 0.1) is None


def test_rows_of_one_token_alone_tell_nothing(still: Folder) -> None:
    model, inputs = load(still("llama")), batch()
    inputs["input_ids"][:] = 7
    assert unpadded_as_padded(model, inputs, lambda given: model(**given).logits.sum(1), 1e-4) is None


def test_blocks_that_are_left_out_at_random_stay_padded(still: Folder) -> None:
    model = load(still("opt"))
    model.config.layerdrop = 0.5
    assert unpadded_as_padded(model, batch(), lambda inputs: model(**inputs).logits.sum(1), 1e-4) is None


def test_tokens_are_told_from_columns(still: Folder) -> None:
    """Rows of 3 and 13 tokens: 16 in all, as many as a padded row has columns."""
    model, inputs = load(still("llama")), batch()
    few = {name: values[[0, 1], :16] for name, values in inputs.items()}
    few["attention_mask"][1, 13:] = few["input_ids"][1, 13:] = 0
    found = Unpadded.of(model)
    assert found is not None
    expected = model(**few).logits
    with found.rows(few):
        torch.testing.assert_close(model(**few).logits, expected)
    assert found.attended == len(found.blocks)


def test_an_attention_function_of_ones_own_is_kept(still: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALL_ATTENTION_FUNCTIONS, "_local_mapping", {})
    mine = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *given, **options: mine(*given, **options)
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    found = Unpadded.of(load(still("bert")))
    assert found is not None
    with found.rows(batch()):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not own
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Unpadded | None]:
    """What engines are made with from now on."""
    made: list[Unpadded | None] = []
    original = estimator.unpadded_as_padded

    def watching(*given: Any) -> Unpadded | None:
        made.append(original(*given))
        return made[-1]

    monkeypatch.setattr(estimator, "unpadded_as_padded", watching)
    return made


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        *((name, task) for name in ("bert", "llama") for task in ("classification", "language_modeling")),
        ("llama", "text2text"),
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run(
    task: str,
    method: str,
    architecture: str,
    recipe: dict[str, Any],
    still: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same gradients and losses as whole batches with padding, in every step."""
    (tmp_path / "data").mkdir()
    write_colours(tmp_path / "data/train.csv", rows=21, seed=3)
    still_standing = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30, "logging_steps": 1}
    recipe |= {
        "training": recipe["training"] | {"num_train_epochs": 1} | still_standing,
        "task": {"type": task} | ({"documents": "separate"} if task == "language_modeling" else {}),
        "model": {"name_or_path": str(still(architecture))},
        "data": {
            "data_dir": str(tmp_path / "data"),
            **({"columns": {"target": "label"}} if task == "text2text" else {}),
        },
        "method": method,
    }
    found = []
    made = watched(monkeypatch)
    for micro_batch in ("off", "auto"):
        engine = {"precision": "fp32", "micro_batch": micro_batch}
        with monkeypatch.context() as patch:
            found.append(engine_gradients(recipe | {"engine": engine}, patch))
    assert [type(one) for one in made] == [Unpadded], "once, for the second run"
    read = {"classification": _last if architecture == "llama" else _first, "text2text": _before_labelled}
    # All tokens of a row of its own are learned; masked ones are drawn anew.
    assert made[0] is not None
    assert made[0].read is read.get(task) or task == "language_modeling"
    (whole, whole_losses), (ours, our_losses) = found
    assert our_losses == pytest.approx(whole_losses, rel=1e-5)
    for one, other in zip(ours, whole, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("architecture", "task", "read"),
    [
        ("bert", "classification", _first),
        ("llama", "classification", _last),
        ("bert", "ner", None),
        ("llama", "text2text", _before_labelled),
    ],
)
def test_predictions_of_many_rows(
    architecture: str,
    task: str,
    read: Any,
    recipe: dict[str, Any],
    tiny: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last block computes the tokens that are read; the answers are those of all tokens."""
    rows = [{"text": "red apple " * (1 + number % 7), "label": f"l{number % 3}"} for number in range(300)]
    if task == "ner":
        rows = [{"tokens": row["text"].split(), "ner_tags": ["B-A", "O"] * (number % 7 + 1)}
                for number, row in enumerate(rows)]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    recipe |= {
        "task": task,
        "model": {"name_or_path": str(tiny(architecture))},
        "data": {
            "train_file": str(tmp_path / "few.jsonl"),
            "test_file": str(file),
            **({"columns": {"target": "label"}} if task == "text2text" else {}),
        },
        "training": recipe["training"] | {"max_steps": 2, "per_device_eval_batch_size": 16},
    }
    metric = {"ner": "entity_f1", "classification": "accuracy", "text2text": "answer_loss"}[task]
    recipe |= {"metrics": [metric]}
    made = watched(monkeypatch)
    run = ftkit.finetune(recipe, overwrite=True)
    last = made[-1]
    assert (last and last.read) is read
    before = (run.folder / "predictions.jsonl").read_text().splitlines()
    score = run.metrics["metrics"][metric]["value"]
    plain = ftkit.evaluate(run.folder, ["engine.micro_batch=off"])
    after = (plain.folder / "predictions.jsonl").read_text().splitlines()
    assert len(made) == 2, "in training and in prediction, and not where it is off"
    assert [json.loads(row)["prediction"] for row in before] == [
        json.loads(row)["prediction"] for row in after
    ]
    assert plain.metrics["metrics"][metric]["value"] == pytest.approx(score, rel=1e-5)


def test_padding_is_counted_where_it_is_computed(recipe: dict[str, Any]) -> None:
    shares = []
    for micro_batch in ("auto", "off"):
        run = ftkit.finetune(
            recipe | {"engine": {"precision": "fp32", "micro_batch": micro_batch}}, overwrite=True
        )
        shares.append(run.manifest["training"]["speed"]["padding"])
    assert shares[0] == 0
    assert shares[1] > 0.1


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_bf16(
    method: str, architecture: str, recipe: dict[str, Any], still: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe |= {"model": {"name_or_path": str(still(architecture))}, "method": method}
    recipe["training"] = {"max_steps": 2, "logging_steps": 1}
    made, found = watched(monkeypatch), []
    for micro_batch in ("off", "auto"):
        engine = {"precision": "bf16", "micro_batch": micro_batch}
        with monkeypatch.context() as patch:
            found.append(engine_gradients(recipe | {"engine": engine}, patch)[1])
    assert [type(one) for one in made] == [Unpadded]
    assert found[1] == pytest.approx(found[0], rel=1e-2)
