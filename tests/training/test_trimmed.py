"""Without the tokens that no training row has, an embedding is trained as it is with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.test_resume import TRAINING, stop_after
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, TrainingArguments
from transformers.models.bert.modeling_bert import BertEmbeddings

import ftkit
from ftkit.run import Run
from ftkit.training import estimator, memory
from ftkit.training.documents import DocumentHead
from ftkit.training.features import FeatureTable
from ftkit.training.heads import SequenceHead
from ftkit.training.trimmed import TrimmedEmbedding, trimmed_embedding

Folder = Callable[[str], Path]
EMBEDDINGS = ("word_embeddings.weight", "tok_embeddings.weight", "wte.weight", "embed_tokens.weight")
ROWS = [{"input_ids": [2, 9, 7, 3]}, {"input_ids": [2, 9, 9, 50, 3]}]


def leave_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "trimmed_embedding", lambda *_: None)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model/model.safetensors")


def embeddings(folder: Path) -> torch.Tensor:
    held = load_file(folder / "model.safetensors").items()
    return next(value for name, value in held if name.endswith(EMBEDDINGS))


def losses(run: Run) -> list[float]:
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [value for line in lines for name, value in line.items() if "loss" in name]


@pytest.mark.parametrize("architecture", ["bert", "electra", "modernbert", "gpt2", "llama", "gemma"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_all_weights_are_those_of_a_whole_embedding(
    architecture: str,
    weight_decay: float,
    tiny: Folder,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validated and saved in between, and taken back to the best one; |d| <= 1e-5 + 1e-5 |w|."""
    recipe["model"] = {"name_or_path": str(tiny(architecture))}
    recipe["training"] = TRAINING | {"weight_decay": weight_decay}
    made = []
    trimmed = TrimmedEmbedding.trimmed
    monkeypatch.setattr(TrimmedEmbedding, "trimmed", lambda self: made.append(self) or trimmed(self))
    ours = ftkit.finetune(recipe)
    assert made and len(made[-1].used) < 25 < 150 < len(made[-1].weight)
    first, after = embeddings(tiny(architecture)), embeddings(ours.folder / "model")
    unused = torch.ones(len(after), dtype=torch.bool)
    unused[made[-1].used] = False
    assert torch.equal(after[unused], first[unused]) == (not weight_decay)
    assert (after[~unused] - first[~unused]).abs().max() > 1e-3

    leave_whole(monkeypatch)
    plain = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'whole'}"])
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)
    expected = weights(plain)
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("whole", ["before", "after", "never"])
def test_checkpoints_hold_the_states_of_all_tokens(
    whole: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run goes on with or without the others, whichever it began with."""
    recipe["training"] = TRAINING | {"weight_decay": 0.2}
    straight = ftkit.finetune(recipe, [f"output_dir={tmp_path / 'straight'}"])
    with monkeypatch.context() as patch:
        stop_after(27, patch)
        if whole == "before":
            leave_whole(patch)
        with pytest.raises(KeyboardInterrupt):
            ftkit.finetune(recipe)
    states = load_file(next((tmp_path / "run/checkpoints").glob("checkpoint-*")) / "optimizer.safetensors")
    assert (176, 32) in {tuple(value.shape) for value in states.values()}
    if whole == "after":
        leave_whole(monkeypatch)
    resumed = ftkit.finetune(recipe, resume=True)
    exact = {} if whole != "never" else {"rtol": 0, "atol": 0}
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, weights(straight)[name], **({"rtol": 1e-5, "atol": 1e-5} | exact))


def test_a_run_that_is_stopped_leaves_the_model_whole(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    trimmed = estimator.trimmed_embedding
    monkeypatch.setattr(estimator, "trimmed_embedding", lambda *its: seen.append(trimmed(*its)) or seen[-1])
    stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ftkit.finetune(recipe)
    (found,) = seen
    assert found.embedding.weight is found.weight and found.embedding.padding_idx == 0
    assert not found.embedding._forward_pre_hooks


def arguments(tmp_path: Path, **given: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


def test_only_what_is_looked_up_alone_is_trimmed(tiny: Folder, whole: Folder, tmp_path: Path) -> None:
    rows, head = FeatureTable(ROWS), SequenceHead(("a", "b"))
    model = AutoModelForSequenceClassification.from_pretrained(tiny("bert"))
    plain = arguments(tmp_path)
    found = trimmed_embedding(model, rows, head, plain, padding=1)
    assert found is not None
    assert found.used.tolist() == [0, 1, 2, 3, 7, 9, 50], "rows, and two kinds of padding"
    assert found.left_out == (176 - 7) * 32

    def refused(model: Any = model, rows: Any = rows, head: Any = head, plain: Any = plain) -> bool:
        return trimmed_embedding(model, rows, head, plain, padding=0) is None

    assert refused(plain=arguments(tmp_path, optim="adafactor")), "moves what has no gradient"
    assert refused(plain=arguments(tmp_path, optim="sgd", weight_decay=0.1))
    assert refused(rows=FeatureTable([{"input_ids": list(range(90))}])), "more than half of the tokens"
    assert refused(rows=[{"input_ids": [5, 176]}]), "the collator says what is wrong"
    assert refused(model=AutoModelForMaskedLM.from_pretrained(whole("bert"))), "the output layer has it too"
    assert refused(model=AutoModelForSequenceClassification.from_pretrained(tiny("t5"))), "and the decoder"
    assert refused(head=DocumentHead("encoder")), "random tokens take the places of others"
    model.get_input_embeddings().weight.requires_grad_(False)
    assert refused()


def test_a_model_that_looks_its_tokens_up_elsewhere_keeps_them_all(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, in the weights."""
    plain = BertEmbeddings.forward

    def elsewhere(self: Any, input_ids: Any = None, **options: Any) -> Any:
        table = self.word_embeddings.weight
        looked_up = torch.nn.functional.embedding(input_ids % len(table), table)
        return plain(self, **options | {"inputs_embeds": looked_up})

    monkeypatch.setattr(BertEmbeddings, "forward", elsewhere)
    monkeypatch.setattr(TrimmedEmbedding, "follow", None)
    assert ftkit.finetune(recipe).manifest["training"]["steps"] == 12


def test_memory_is_planned_without_the_rest(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    needs = []
    estimate = memory.estimate
    monkeypatch.setattr(
        memory, "estimate", lambda *its, **how: needs.append(estimate(*its, **how)) or needs[-1]
    )
    ftkit.finetune(recipe)
    leave_whole(monkeypatch)
    ftkit.finetune(recipe, overwrite=True)
    trimmed, whole = needs
    # Gradients and two moments of the 157 others, and a second copy of the 19 in use.
    assert whole.fixed - trimmed.fixed == 4 * 32 * (3 * (176 - 19) - 19)
    assert trimmed.after == whole.after
