"""Writing against plain transformers code: losses and gradients, what is learned, cut and written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny as tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from training.test_gradients import BATCH, ROWS, SEED, assert_same_gradients, engine_gradients
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    set_seed,
)

import ftkit
from ftkit import prediction
from ftkit.errors import InputError
from ftkit.records import Record, Turn, Writing
from ftkit.tasks.instruction import Instruction
from ftkit.tasks.text2text import Text2Text
from ftkit.training import generation
from ftkit.training.batches import EpochBatches, micro_batches
from ftkit.training.generation import Writer
from ftkit.training.heads import IGNORED
from ftkit.training.writing import WritingHead

ARCHITECTURES = ["gpt2", "llama", "t5"]
Folder = Callable[[str], Path]
Row = dict[str, Any]


def words(generator: random.Random, most: int) -> str:
    return " ".join(generator.choices(tiny_models.WORDS, k=generator.randint(1, most)))


@cache
def texts() -> list[Row]:
    generator = random.Random(0)
    return [{"text": words(generator, 12), "target": words(generator, 6)} for _ in range(ROWS)]


@cache
def chats() -> list[Row]:
    """Conversations of one to three questions, some with a system message."""
    generator = random.Random(0)
    rows = []
    for number in range(ROWS):
        messages = [{"role": "system", "content": words(generator, 3)}] if number % 3 == 0 else []
        for _ in range(1 + number % 3):
            messages += [
                {"role": "user", "content": words(generator, 5)},
                {"role": "assistant", "content": words(generator, 4)},
            ]
        rows.append({"messages": messages})
    return rows


# Losses and gradients -----------------------------------------------------------------------------


def plain_text2text(row: Row, tokenizer: Any, *, encoder_decoder: bool) -> dict[str, list[int]]:
    """Inputs and labels of a row, joined from parts that are tokenized apart (a byte is a token)."""
    if encoder_decoder:
        return {
            "input_ids": tokenizer(row["text"])["input_ids"],
            "labels": tokenizer(row["target"])["input_ids"],
        }
    read = tokenizer(f"Input: {row['text']}\nOutput:")["input_ids"]
    written = tokenizer(f" {row['target']}", add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return {"input_ids": read + written + end, "labels": [-100] * len(read) + written + end}


def plain_instruction(row: Row, tokenizer: Any, *, encoder_decoder: bool) -> dict[str, list[int]]:
    """The same of a conversation, in the plain template: every line tokenized apart."""
    end, begin = [tokenizer.eos_token_id], [tokenizer.bos_token_id] if tokenizer.bos_token else []
    ids, labels = list(begin), [-100] * len(begin)

    def put(text: str, *, learned: bool = False, closing: Sequence[int] = ()) -> None:
        new = [*tokenizer(text, add_special_tokens=False)["input_ids"], *closing]
        ids.extend(new)
        labels.extend(new if learned else [-100] * len(new))

    for number, message in enumerate(row["messages"], 1):
        content, last = message["content"], number == len(row["messages"])
        if message["role"] == "system":
            put(content + "\n\n")
        elif message["role"] == "user":
            put(f"User: {content}\n")
        elif last and encoder_decoder:
            put("Assistant:", closing=end)
            return {"input_ids": ids, "labels": tokenizer(content)["input_ids"]}
        else:
            put("Assistant:")
            put(f" {content}", learned=True, closing=end)
            if not last:
                put("\n")
    return {"input_ids": ids, "labels": labels}


def plain_gradients(recipe: dict[str, Any], rows: Sequence[Row], smoothing: float = 0.0) -> Any:
    """What transformers' own loss gives: a row at a time, unpadded, weighed by the tokens it is over."""
    folder, task = recipe["model"]["name_or_path"], recipe["task"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder_decoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    set_seed(SEED)
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    plain = plain_text2text if task == "text2text" else plain_instruction
    encoded = [plain(row, tokenizer, encoder_decoder=encoder_decoder) for row in rows]
    steps, losses = [], []
    for batch in EpochBatches(total=ROWS, size=BATCH, seed=SEED, rank=0, processes=1):
        chosen = [encoded[row] for row, *_ in batch]
        tokens = [sum(label != -100 for label in row["labels"]) for row in chosen]
        model.zero_grad()
        total = 0.0
        for row, count in zip(chosen, tokens, strict=True):
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
            loss = output.loss
            if smoothing:
                loss = functional.cross_entropy(
                    output.logits[0, :-1], labels[0, 1:], label_smoothing=smoothing, ignore_index=-100
                )
            (loss * count / sum(tokens)).backward()
            total += loss.item() * count / sum(tokens)
        losses.append(total)
        steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return steps, losses


@pytest.fixture
def frozen_recipe(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """One epoch whose steps leave the weights where they are; the last batch is short."""
    for task, rows in (("text2text", texts()), ("instruction", chats())):
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return recipe | {
        "training": {
            "num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30,
            "logging_steps": 1, "per_device_train_batch_size": BATCH, "save_strategy": "no",
        },
    }  # fmt: skip


def prepared(recipe: dict[str, Any], task: str, model: Path, tmp_path: Path) -> dict[str, Any]:
    data = {"train_file": str(tmp_path / f"{task}.jsonl")}
    return recipe | {"task": task, "model": {"name_or_path": str(model)}, "data": data}


def assert_same_steps(ours: Any, plain: Any) -> None:
    (our_steps, our_losses), (plain_steps, plain_losses) = ours, plain
    assert len(our_steps) == len(plain_steps) == 3
    for one, other in zip(our_steps, plain_steps, strict=True):
        assert_same_gradients(one, other)
    assert our_losses == pytest.approx(plain_losses, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [(task, architecture) for task in ("text2text", "instruction") for architecture in ARCHITECTURES],
)
def test_gradients_equal_plain_transformers(
    task: str,
    architecture: str,
    frozen_recipe: dict[str, Any],
    still: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the batch of 8 is cut: whole, in two, in rows of similar length; the last has 5 rows."""
    recipe = prepared(frozen_recipe, task, still(architecture), tmp_path)
    plain = plain_gradients(recipe, texts() if task == "text2text" else chats())
    whole = {"engine": {"precision": "fp32", "micro_batch": "off"}}
    with monkeypatch.context() as patch:
        assert_same_steps(engine_gradients(recipe | whole, patch), plain)
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    with monkeypatch.context() as patch:
        assert_same_steps(engine_gradients(recipe | {"training": recipe["training"] | halves}, patch), plain)
    cuts: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("ftkit.training.estimator.pass_overhead", lambda model: 1)
        patch.setattr("ftkit.training.estimator.unpadded_as_padded", lambda *_: None)
        patch.setattr(
            "ftkit.training.engine.micro_batches",
            lambda *given, **more: cuts.append(micro_batches(*given, **more)) or cuts[-1],
        )
        assert_same_steps(engine_gradients(recipe, patch), plain)
    assert [len(parts) for parts in cuts] == [2, 2, 2], "a batch is cut at multiples of 4 rows"


def test_label_smoothing_equals_torch(
    frozen_recipe: dict[str, Any], still: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(frozen_recipe, "instruction", still("llama"), tmp_path)
    recipe["training"] |= {"label_smoothing_factor": 0.2}
    assert_same_steps(engine_gradients(recipe, monkeypatch), plain_gradients(recipe, chats(), 0.2))


def test_the_answer_loss_is_a_likelihood_whatever_the_training_smooths(
    frozen_recipe: dict[str, Any], still: Folder, tmp_path: Path
) -> None:
    recipe = prepared(frozen_recipe, "text2text", still("gpt2"), tmp_path)
    recipe["data"] |= {"test_file": recipe["data"]["train_file"]}
    found = []
    for smoothing in (0.0, 0.5):
        training = recipe["training"] | {"label_smoothing_factor": smoothing, "max_steps": 1}
        run = ftkit.finetune(recipe | {"training": training, "metrics": ["answer_loss"]}, overwrite=True)
        found.append(run.metrics["metrics"]["answer_loss"]["value"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


# What is learned ----------------------------------------------------------------------------------

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
_SPOKEN = _TEXT.map(str.strip)


@cache
def merging() -> Any:
    """A byte-level BPE tokenizer with merges, as GPT-2's, and with ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    generator = random.Random(0)
    lines = [f"Input: {words(generator, 12)}\nOutput: {words(generator, 12)}" for _ in range(200)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        additional_special_tokens=special[1:], chat_template=CHATML, model_max_length=100_000,
    )  # fmt: skip


def head(task: Any, family: str = "decoder") -> WritingHead:
    return task.objective((), {}, family=family, label_smoothing=0.0)


def one_row(task: Any, record: Record, tokenizer: Any, family: str = "decoder") -> Any:
    (row,) = head(task, family).encode([record], tokenizer, 100_000).features
    return row


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.none() | _SPOKEN, st.lists(st.tuples(_SPOKEN, _SPOKEN), min_size=1, max_size=3))
def test_a_conversation_is_learned_where_the_template_says_generation(
    system: str | None, exchanges: list[tuple[str, str]]
) -> None:
    """transformers' own mask by the markers, but for white space after an end token.

    The template writes a line end after each <|im_end|>, inside the marker; ours does not teach it, as the
    model is stopped before.
    """
    tokenizer = merging()
    messages = [{"role": "system", "content": system}] if system else []
    for asked, said in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    record = Instruction().read({"messages": messages}, "row")
    ours = one_row(Instruction(), record, tokenizer)
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = list(theirs["input_ids"]), list(theirs["assistant_masks"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (line_end,) = tokenizer("\n")["input_ids"]
    for place in range(1, len(ids)):
        if ids[place - 1] == end and ids[place] == line_end:
            mask[place] = 0
    assert ours["input_ids"] == ids
    assert [label != IGNORED for label in ours["labels"]] == [bool(one) for one in mask]
    assert all(label in (IGNORED, token) for label, token in zip(ours["labels"], ids, strict=True))
    assert sum(label == end for label in ours["labels"]) == len(exchanges), "an end token for each answer"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TEXT, _TEXT, st.sampled_from([None, "{{ text }}", "{{ text }} ->", "{{ text }}\n", "# {{ text }} "]))
def test_a_completion_is_learned_as_in_trl(text: str, target: str, template: str | None) -> None:
    """TRL's rule: what the tokens of prompt and of prompt + completion have in common is not learned."""
    tokenizer = merging()
    task = Text2Text(template=template)
    record = task.read({"text": text, "target": target}, "row")
    ours = one_row(task, record, tokenizer)
    prompt = (template or "Input: {{ text }}\nOutput:").replace("{{ text }}", text)
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(f"{prompt} {target.strip()}")["input_ids"] + [tokenizer.eos_token_id]
    common = next(
        (n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        min(len(before), len(whole)),
    )
    assert ours["input_ids"] == whole
    assert ours["labels"] == [IGNORED] * common + whole[common:]
    assert head(task).prompts([record], tokenizer, 100_000) == [before]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_read_and_written_round_trips(architecture: str, tiny: Folder) -> None:
    """Prompt and learned tokens, decoded, are the texts; nothing else is in them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny(architecture))
    family = "encoder_decoder" if architecture == "t5" else "decoder"
    row = one_row(Text2Text(), Record("a  naïve ☃", target=Writing("über\n two")), tokenizer, family)
    labels = [label for label in row["labels"] if label != IGNORED]
    assert labels[-1] == tokenizer.eos_token_id
    written = tokenizer.decode(labels[:-1], clean_up_tokenization_spaces=False)
    if family == "decoder":
        assert written == " über\n two"
        read = row["input_ids"][: -len(labels)]
        assert row["labels"][: -len(labels)] == [IGNORED] * len(read)
        assert tokenizer.decode(read, skip_special_tokens=True) == "Input: a  naïve ☃\nOutput:"
        assert (read[0] == tokenizer.bos_token_id) == (architecture == "llama"), "one begin token at most"
        assert tokenizer.bos_token_id not in read[1:]
    else:
        assert written == "über\n two"
        assert tokenizer.decode(row["input_ids"]) == "a  naïve ☃</s>"


def test_a_template_that_rewrites_earlier_answers_teaches_only_the_last() -> None:
    """As templates of reasoning models do, which drop what was thought in earlier turns."""
    tokenizer = merging()
    thinking = CHATML.replace(
        "{{ message['content'] + '<|im_end|>'",
        "{{ (message['content'] if loop.last else message['content'].split('|')[-1]) + '<|im_end|>'",
        1,
    )
    turns = (Turn("user", "a"), Turn("assistant", "why|b"), Turn("user", "c"))
    row = one_row(Instruction(chat_template=thinking), Record("c", target=Writing("how|d"), turns=turns),
                  prepared_tokenizer(tokenizer, thinking))  # fmt: skip
    learned = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learned) == "how|d<|im_end|>"


def prepared_tokenizer(tokenizer: Any, template: str) -> Any:
    import copy

    other = copy.deepcopy(tokenizer)
    head(Instruction(chat_template=template)).prepare(other, 64)
    assert other.chat_template == template
    return other


def test_the_tokenizers_own_template_stays_and_a_missing_one_is_supplied(tiny: Folder) -> None:
    own = AutoTokenizer.from_pretrained(tiny("llama"))
    head(Instruction()).prepare(own, 64)
    assert "Assistant:" in own.chat_template
    own.chat_template = CHATML
    head(Instruction()).prepare(own, 64)
    assert own.chat_template == CHATML
    head(Instruction(chat_template="{{ messages[0]['content'] }}")).prepare(own, 64)
    assert own.chat_template == "{{ messages[0]['content'] }}"


def test_an_answer_that_ends_with_an_unknown_character_is_closed() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Input:": 2, "Output:": 3, "a": 4}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    row = one_row(Text2Text(), Record("a", target=Writing("a ☃")), tokenizer)
    assert row["labels"][-3:] == [4, 0, 1]
    (note,) = head(Text2Text()).encode([Record("a", target=Writing("a ☃"))], tokenizer, 64).notes
    assert "1 rows have answers with characters that the tokenizer cannot write" in note


def test_the_bytes_are_those_of_all_that_is_learned(tiny: Folder) -> None:
    """bits_per_byte divides the loss by them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    objective = head(Instruction())
    objective.prepare(tokenizer, 200)
    turns = (Turn("user", "a"), Turn("assistant", "größe"), Turn("user", "c"))
    records = [Record("c", target=Writing("two"), turns=turns)]
    encoded = objective.encode(records, tokenizer, 200)
    learned = [label for label in encoded.features[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(learned) == " größe<|endoftext|> two<|endoftext|>"
    (prediction,) = objective.predictions(records, encoded, [(1.0, len(learned))])
    assert prediction.value.octets == len("größe".encode()) + len("two")


# What is cut --------------------------------------------------------------------------------------

LONG = "0123456789" * 5
ASKED, SAID = "Input: ", "\nOutput:"


def long_record(text: str = LONG, target: str = "yes") -> Record:
    return Record(text, target=Writing(target), where="rows:7")


def byte_tokenizer(family: str, tiny: Folder) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2" if family == "decoder" else "t5"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("how", ["left", "right"])
def test_a_long_row_is_cut_inside_its_input(how: str, family: str, tiny: Folder) -> None:
    tokenizer = byte_tokenizer(family, tiny)
    objective = head(Text2Text(truncation=how), family)
    records = [long_record(), long_record("short"), long_record()]
    encoded = objective.encode(records, tokenizer, 40)
    assert encoded.truncated == 2
    assert encoded.notes == ()
    assert list(encoded.owners) == [0, 1, 2]
    row = encoded.features[0]
    assert len(row["input_ids"]) == len(row["attention_mask"]) == 40
    # What stays besides the input: the template, the answer with its space, the end token.
    frame = 0 if family == "encoder_decoder" else len(ASKED) + len(SAID) + len(" yes")
    room = 40 - frame - 1
    kept = LONG[-room:] if how == "left" else LONG[:room]
    if family == "decoder":
        assert tokenizer.decode(row["input_ids"][:-1]) == f"{ASKED}{kept}{SAID} yes"
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert row["labels"] == [IGNORED] * 35 + row["input_ids"][-5:]
    else:
        assert tokenizer.decode(row["input_ids"]) == f"{kept}</s>"
        assert tokenizer.decode(row["labels"]) == "yes</s>"
    assert max(len(one["input_ids"]) for one in encoded.features) <= 40


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("how", ["left", "right", "drop"])
def test_prompts_are_cut_as_rows_are(how: str, family: str, tiny: Folder) -> None:
    """A row to predict for cannot be left out: there `drop` cuts on the left."""
    tokenizer = byte_tokenizer(family, tiny)
    objective = head(Text2Text(truncation=how), family)
    (asked,) = objective.prompts([long_record()], tokenizer, 30)
    (unanswered,) = objective.prompts([Record(LONG)], tokenizer, 30)
    assert asked == unanswered, "the answer plays no part in the prompt"
    assert len(asked) == 30
    room = 30 - (1 if family == "encoder_decoder" else len(ASKED) + len(SAID))
    kept = LONG[:room] if how == "right" else LONG[-room:]
    shown = tokenizer.decode(asked)
    assert shown == (f"{kept}</s>" if family == "encoder_decoder" else f"{ASKED}{kept}{SAID}")


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_long_rows_are_left_out_or_refused(family: str, tiny: Folder) -> None:
    tokenizer = byte_tokenizer(family, tiny)
    records = [long_record("short"), long_record(), long_record()]
    dropped = head(Text2Text(truncation="drop"), family).encode(records, tokenizer, 40)
    assert (list(dropped.owners), dropped.truncated) == ([0], 0)
    assert dropped.notes == (
        "2 rows do not fit within 40 tokens with their whole answer, and are left out (first: rows:7)",
    )
    with pytest.raises(
        InputError, match=r"rows:7: the row has [0-9]+ tokens, more than the 40 there is room"
    ):
        head(Text2Text(truncation="error"), family).encode(records, tokenizer, 40)


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("how", ["left", "right", "drop"])
def test_an_answer_that_does_not_fit_is_never_cut(how: str, family: str, tiny: Folder) -> None:
    tokenizer = byte_tokenizer(family, tiny)
    records = [long_record("short", LONG), long_record("short", "y")]
    encoded = head(Text2Text(truncation=how), family).encode(records, tokenizer, 40)
    assert (list(encoded.owners), encoded.truncated) == ([1], 0)
    assert len(encoded.notes) == 1
    assert encoded.notes[0].startswith("1 rows do not fit within 40 tokens with their whole answer")


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_the_longest_answer_that_fits(family: str, tiny: Folder) -> None:
    """To the token: with one more the row is left out, as the input is gone or the answer too long."""
    tokenizer = byte_tokenizer(family, tiny)
    most = 39 if family == "encoder_decoder" else 40 - len(ASKED) - len(SAID) - len(" ") - 1
    objective = head(Text2Text(), family)
    assert len(objective.encode([long_record("ab", "y" * most)], tokenizer, 40).features) == 1
    assert len(objective.encode([long_record("ab", "y" * (most + 1))], tokenizer, 40).features) == 0


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_a_long_prompt_is_refused_where_truncation_is_an_error(family: str, tiny: Folder) -> None:
    with pytest.raises(InputError, match="rows:7: the row has"):
        head(Text2Text(truncation="error"), family).prompts([long_record()], byte_tokenizer(family, tiny), 30)


def test_the_length_of_an_answer_that_is_too_long_is_told(tiny: Folder) -> None:
    objective = head(Text2Text(truncation="error"), "encoder_decoder")
    with pytest.raises(InputError) as error:
        objective.encode([long_record("short", LONG)], byte_tokenizer("encoder_decoder", tiny), 40)
    assert "6 tokens" not in str(error.value)
    assert "51 tokens" in str(error.value)


def test_a_conversation_is_cut_between_its_system_prompt_and_its_last_question(tiny: Folder) -> None:
    tokenizer = byte_tokenizer("decoder", tiny)
    task = Instruction()
    objective = head(task)
    objective.prepare(tokenizer, 90)
    turns = (
        Turn("system", "be kind"),
        Turn("user", "A" * 40),
        Turn("assistant", "first"),
        Turn("user", "B" * 20),
    )
    record = Record("B" * 20, target=Writing("second"), where="rows:7", turns=turns)
    whole = (
        "be kind\n\nUser: "
        + "A" * 40
        + "\nAssistant: first<|endoftext|>\nUser: "
        + "B" * 20
        + "\nAssistant: second"
    )
    for how, limit in (("left", 90), ("right", 90), ("left", 60)):
        objective = head(Instruction(truncation=how))
        encoded = objective.encode([record], tokenizer, limit)
        assert encoded.truncated == 1
        (row,) = encoded.features
        assert len(row["input_ids"]) == limit if how == "right" else len(row["input_ids"]) <= limit
        shown = tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False)
        assert shown.startswith("<|endoftext|>be kind\n\nUser: "), "the system prompt stays"
        assert shown.endswith("\nAssistant: second<|endoftext|>\n"), "the answer stays"
        # The oldest exchange goes whole.
        assert (shown.count("A") > shown.count("B")) == (how == "right")
        assert how == "right" or shown.count("A") == 1
    learned = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    assert learned.endswith(" second<|endoftext|>")
    assert len(whole) > 90
    assert not head(Instruction()).encode([record], tokenizer, 34).features, "the frame alone is longer"


@pytest.mark.parametrize("how", ["left", "right"])
def test_an_earlier_answer_is_learned_whole_or_not_at_all(how: Any, tiny: Folder) -> None:
    tokenizer = byte_tokenizer("decoder", tiny)
    objective = head(Instruction(truncation=how))
    objective.prepare(tokenizer, 200)
    said = ("grün", "second", "third")
    turns = [turn for text in said[:-1] for turn in (Turn("user", "A" * 9), Turn("assistant", text))]
    record = Record("B", target=Writing(said[-1]), turns=(*turns, Turn("user", "B")))
    (whole,) = objective.encode([record], tokenizer, 500).features
    found = set()
    for limit in range(len(whole["input_ids"]), 0, -1):
        encoded = objective.encode([record], tokenizer, limit)
        if not encoded.features:
            break
        (row,) = encoded.features
        learned = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
        answers = tuple(learned.replace("<|endoftext|>", " ").split())
        assert set(answers) <= set(said), limit
        assert answers[-1] == "third"
        assert row["octets"] == sum(len(text.encode()) for text in answers)
        found.add(answers)
    assert len(found) > 1, "some were cut"


def test_a_short_last_message_does_not_open_the_frame_to_cutting() -> None:
    """`a` also stands in `<|im_start|>assistant`."""
    tokenizer = merging()
    turns = (Turn("user", "1234567890" * 5), Turn("assistant", "b"), Turn("user", "a"))
    objective = head(Instruction(truncation="right"))
    record = Record("a", target=Writing("yes"), turns=turns)
    (whole,) = objective.prompts([record], tokenizer, 1000)
    (cut,) = objective.prompts([record], tokenizer, len(whole) - 6)
    assert tokenizer.decode(cut).endswith("<|im_start|>assistant\n")


def test_a_long_second_text_is_cut_as_well(tiny: Folder) -> None:
    """A question with a long context (`text_pair` is also read from a column `context`)."""
    record = Record("who?", text_pair=LONG, target=Writing("yes"))
    encoded = head(Text2Text()).encode([record], byte_tokenizer("decoder", tiny), 40)
    assert (encoded.truncated, len(encoded.features)) == (1, 1)


# What is written ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loud(tiny: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`loud("t5")` is the folder of a tiny model with large random weights."""
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in folders:
            known = None if architecture == "bart" else tiny(architecture)
            folders[architecture] = build_loud(known, tmp_path_factory.mktemp("loud") / architecture)
        return folders[architecture]

    return get


def build_loud(source: Path | None, folder: Path) -> Path:
    """Save a tiny model (BART, where there is no source) whose words hang on all that it reads."""
    torch.manual_seed(0)
    model, tokenizer = loaded(source) if source else bart()
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.dim() == 2):
            tokens = weight.shape[0] == len(tokenizer)
            # Small embeddings: where they are tied to the output, a token would foretell itself.
            weight.copy_(torch.randn(weight.shape) * (0.1 if tokens else 0.5))
            if tokens:
                weight[_unreadable(tokenizer)] = 0
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # What a few steps of training leave of it must not hang on random numbers.
    for name in ("dropout", "dropout_rate", "attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _unreadable(tokenizer: Any) -> list[int]:
    """Bytes that are no letters: any of them is decoded to the same character."""
    return [token for name, token in tokenizer.get_vocab().items() if len(name) == 1 and not name.isascii()]


def bart() -> Any:
    """An encoder-decoder whose positions are counted from the left, unlike T5's."""
    tokenizer = tiny_models._byte_level(Path())
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "max_position_embeddings": 64}  # fmt: skip
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = AutoConfig.for_model("bart", vocab_size=len(tokenizer), **sizes, **tokens)
    return BartForConditionalGeneration(config), tokenizer


PROMPTS = [
    "the red card",
    "a",
    "where is my order, please? it was good",
    "blue",
    "the game of the world business is not on my phone",
]


def loaded(folder: Path) -> Any:
    auto = (
        AutoModelForSeq2SeqLM
        if AutoConfig.from_pretrained(folder).is_encoder_decoder
        else AutoModelForCausalLM
    )
    return auto.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def writer(model: Any, tokenizer: Any, stop: set[int], **given: Any) -> Writer:
    chosen = {"max_new_tokens": 12, **given}
    return Writer(model, tokenizer, settings=chosen, stop=sorted(stop) or None, precision="fp32")


def plain_text(model: Any, tokenizer: Any, ids: list[int], stop: set[int], **given: Any) -> str:
    """What plain transformers writes for one prompt without padding."""
    inputs = torch.tensor([ids])
    chosen = {"max_new_tokens": 12, "do_sample": False, **given}
    written = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), eos_token_id=sorted(stop) or None,
        pad_token_id=tokenizer.pad_token_id, **chosen,
    )  # fmt: skip
    start = 0 if model.config.is_encoder_decoder else len(ids)
    return tokenizer.decode(written[0, start:], skip_special_tokens=True).strip()


WRITERS = [
    *ARCHITECTURES,
    pytest.param("bart"),
]  # fmt: skip


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize(
    "given",
    [{}, {"num_beams": 3}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, {"min_new_tokens": 4}],
)
def test_a_batch_is_written_as_each_prompt_alone(
    given: dict[str, Any], architecture: str, loud: Folder
) -> None:
    model, tokenizer = loaded(loud(architecture))
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    stop = {tokenizer.eos_token_id}
    write = writer(model, tokenizer, stop, **given)
    plain = [plain_text(model, tokenizer, ids, stop, **given) for ids in prompts]
    assert len(set(plain)) > 2, "the prompts tell"
    alone = [write.write([ids], 1)[0] for ids in prompts]
    assert alone == plain
    for batch in (2, 8):
        assert write.write(prompts, batch) == plain
    assert write.write(prompts[::-1], 2) == plain[::-1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_written_after_an_end_token(architecture: str, loud: Folder) -> None:
    model, tokenizer = loaded(loud(architecture))
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    free = writer(model, tokenizer, set()).write(prompts, 8)
    # A letter that some texts hold in their middle ends them; the others go on beside them.
    letter = next(c for c in free[0][1:] if c.isascii() and c != " ")
    (stop,) = tokenizer(letter, add_special_tokens=False)["input_ids"]
    ended = writer(model, tokenizer, {stop}).write(prompts, 8)
    assert ended == [plain_text(model, tokenizer, ids, {stop}) for ids in prompts]
    assert ended[0] != free[0]
    assert all(text.count(letter) <= 1 for text in ended)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stream_is_the_text(architecture: str, loud: Folder) -> None:
    model, tokenizer = loaded(loud(architecture))
    write = writer(model, tokenizer, {tokenizer.eos_token_id})
    ids = tokenizer(PROMPTS[0])["input_ids"]
    pieces: list[str] = []
    whole = write.stream(ids, pieces.append)
    assert whole == write.write([ids], 1)[0]
    assert "".join(pieces).strip() == whole


def test_sampling_hangs_on_the_seed_alone(loud: Folder) -> None:
    model, tokenizer = loaded(loud("llama"))
    ids = tokenizer(PROMPTS[0])["input_ids"]
    write = writer(model, tokenizer, set(), do_sample=True, temperature=2.0)
    found = []
    for seed in (1, 1, 2):
        set_seed(seed)
        found.append(write.write([ids] * 3, 8))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 1


def test_the_tokens_that_close_an_answer(tiny: Folder) -> None:
    """The tokenizer's end token, and what the chat template writes after an answer."""
    chatml = merging()
    end, turn = (chatml.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    assert head(Instruction()).closing(chatml) == {end, turn}
    assert head(Text2Text()).closing(chatml) == {end}
    for architecture in ARCHITECTURES:
        tokenizer = AutoTokenizer.from_pretrained(tiny(architecture))
        family = "encoder_decoder" if architecture == "t5" else "decoder"
        for task in (Text2Text(), Instruction()):
            objective = head(task, family)
            objective.prepare(tokenizer, 64)
            assert objective.closing(tokenizer) == {tokenizer.eos_token_id}


def test_the_tokens_that_close_an_answer_of_a_template_with_two_texts(tiny: Folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    task = Text2Text(template="{{ text }} / {{ text_pair }}:")
    assert head(task).closing(tokenizer) == {tokenizer.eos_token_id}


def test_a_model_is_copied_once_however_many_parts_are_written(
    recipe: dict[str, Any], tiny: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 texts are written by a copy of the model, which is trained and scored in another precision."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))
    recipe |= {
        "task": "text2text",
        "model": {"name_or_path": str(tiny("gpt2"))},
        "data": {"train_file": str(tmp_path / "train.jsonl")},
        "training": {"max_steps": 1},
        "engine": {"precision": "bf16"},
        "generation": {"max_new_tokens": 2},
    }
    run = ftkit.finetune(recipe)
    copies: list[Any] = []
    copy = generation.lowered_copy
    monkeypatch.setattr(generation, "lowered_copy", lambda *given: copies.append(given) or copy(*given))
    monkeypatch.setattr(prediction, "_FIRST_PART", 1)
    records = prediction.records_of_texts(run, ["a", "b", "c", "d"], None)
    assert len(list(prediction.predict_stream(run, records))) == 4
    assert len(copies) == 1


PAIR = {"text": "a" * 300, "context": "b" * 300, "target": "c"}
SHORT = {"text": "a", "context": "b", "target": "c"}


def pairs_recipe(model: Path, folder: Path, *validation: Any, **task: Any) -> dict[str, Any]:
    """Text to text with two texts, of which only the longer may be cut."""
    for split, rows in (("train", [SHORT] * 8), ("validation", validation), ("test", validation)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"type": "text2text", **task},
        "model": {"name_or_path": str(model), "max_length": 128},
        "data": {"data_dir": str(folder)},
        "method": "full",
        "training": {"max_steps": 2, "per_device_train_batch_size": 4},
        "metrics": ["exact_match"],
        "generation": {"max_new_tokens": 2},
        "engine": {"precision": "fp32"},
        "output_dir": str(folder / "run"),
    }


def test_a_row_that_does_not_fit_has_an_empty_answer(
    tiny: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One such row ended a training at its first validation, and left a whole test split without scores."""
    run = ftkit.finetune(pairs_recipe(tiny("gpt2"), tmp_path, SHORT, PAIR, SHORT))
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[1]["prediction"] == ""
    assert "1 of 3 rows do not fit within 128 tokens, whatever is left out of them" in caplog.text
    assert f"(first: {tmp_path}/test.jsonl:2)" in caplog.text
    (alone,) = ftkit.predict(run, [(PAIR["text"], PAIR["context"])])
    assert alone.value.text == ""


def test_a_row_that_is_to_be_refused_is_refused_before_training(tiny: Folder, tmp_path: Path) -> None:
    """It fits with its answer, but leaves no room to write as much as is asked for."""
    positions = AutoConfig.from_pretrained(tiny("gpt2")).n_positions
    row = {**SHORT, "text": "a" * (positions - 30)}
    recipe = pairs_recipe(tiny("gpt2"), tmp_path, SHORT, row, truncation="error")
    says = rf"validation.jsonl:2: the row has \d+ tokens, more than the {positions - 16} there is room for"
    with pytest.raises(InputError, match=says):
        ftkit.finetune(recipe, [f"model.max_length={positions}", "generation.max_new_tokens=16"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "published",
    [{"temperature": 0.9, "top_p": 0.6}, {"top_k": 20}, {"length_penalty": 2.0, "early_stopping": True}],
)
def test_models_that_say_how_they_would_sample_are_saved(
    method: str, published: dict[str, Any], whole: Folder, tmp_path: Path
) -> None:
    """transformers saves such a configuration only where nothing of it was changed."""
    model = shutil.copytree(whole("gpt2"), tmp_path / "model")
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | published))
    run = ftkit.finetune(pairs_recipe(model, tmp_path, SHORT), [f"method={method}"])
    assert json.loads((run.folder / "model" / "generation_config.json").read_text())["eos_token_id"]


def test_a_published_way_to_sample_that_is_asked_for_stays(whole: Folder, tmp_path: Path) -> None:
    model = shutil.copytree(whole("gpt2"), tmp_path / "model")
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.9}))
    run = ftkit.finetune(pairs_recipe(model, tmp_path, SHORT))
    saved = json.loads((run.folder / "model" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"]) == (True, 0.9)
