"""A small T5 from scratch says what a record on a restaurant holds, beside copying a neighbour's sentence.

    python benchmarks/data_to_text.py --data ../shared/data

The E2E set (Novikova et al., 2017): devset.csv and testset_w_refs.csv are joined and split anew by meaning
representation, so no record that is trained on is scored: eight tenths to train, one to choose the checkpoint
and settings, one to report. A record of the last two parts has all its sentences as references. The baseline
copies the first sentence of the training record that shares the most of its fields. One and the same
sacreBLEU scores both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

References = dict[str, list[str]]
"""The sentences of every record, by its meaning representation."""

SIZES = {
    "d_model": 192,
    "d_ff": 512,
    "d_kv": 64,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "dropout_rate": 0.0,
}
TRAINING = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 16,
    "learning_rate": 1.5e-3,
    "adam_beta2": 0.98,
    "warmup_steps": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


def main() -> None:
    """Train, write and score, and print both scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=TRAINING["num_train_epochs"])
    parser.add_argument(
        "--validation", action="store_true", help="score the validation part, to choose settings"
    )
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parts = split(read(args.data / "e2e_nlg"))
    scored = parts["validation" if args.validation else "test"]
    references = list(scored.values())
    found: dict[str, Any] = {"records": {name: len(part) for name, part in parts.items()}}
    found["copied"] = bleu([neighbour(record, parts["train"]) for record in scored], references)
    print(f"copied from the nearest record: {found['copied']}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        started, used = time.perf_counter(), time.process_time()
        written, run = train(args, parts, list(scored), Path(name))
        found["seconds"] = round(time.perf_counter() - started)
        found["cpu_seconds"] = round(time.process_time() - used)
    found["written"] = bleu(written, references)
    found |= {"seed": args.seed, "epochs": args.epochs, "versions": run.manifest["versions"]}
    print(f"written by T5: {found['written']}, {found['seconds']} s", flush=True)
    print(f"difference: {found['written']['bleu'] - found['copied']['bleu']:.2f} BLEU")
    if not args.validation:
        target = Path(__file__).parent / "results/data_to_text.json"
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> References:
    """All records with their sentences, in the order of the files."""
    found: References = {}
    for file in ("devset.csv", "testset_w_refs.csv"):
        with (folder / file).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                found.setdefault(row["mr"], []).append(row["ref"].strip())
    return found


def split(rows: References) -> dict[str, References]:
    """Train, validation and test, drawn by record with a fixed seed."""
    records = list(rows)
    random.Random(1).shuffle(records)
    tenth = len(records) // 10
    drawn = {"validation": records[:tenth], "test": records[tenth : 2 * tenth], "train": records[2 * tenth :]}
    return {name: {record: rows[record] for record in part} for name, part in drawn.items()}


def neighbour(record: str, known: References) -> str:
    """The first sentence of the known record with the largest share of common fields."""
    fields = set(record.split(", "))

    def likeness(other: str) -> float:
        others = set(other.split(", "))
        return len(fields & others) / len(fields | others)

    return known[max(known, key=likeness)][0]


def bleu(texts: list[str], references: list[list[str]]) -> dict[str, Any]:
    """Corpus BLEU in percent with its signature; a record may have fewer references than another."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    streams = [list(stream) for stream in zip_longest(*references)]
    score = metric.corpus_score(texts, streams).score
    return {"bleu": round(score, 2), "signature": str(metric.get_signature())}


def train(
    args: argparse.Namespace, parts: dict[str, References], records: list[str], folder: Path
) -> tuple[list[str], Any]:
    """Fine-tune, and write a sentence for every record; returns them and the run."""
    import ftkit

    for name, part in parts.items():
        pairs: list[tuple[str, Any]] = list(part.items())
        if name == "train":
            pairs = [(record, sentence) for record, sentences in pairs for sentence in sentences]
        rows = [json.dumps({"data": record, "target": target}) + "\n" for record, target in pairs]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    run = ftkit.finetune(
        {
            "task": "text2text",
            "model": {
                "from_config": {"model_type": "t5", **SIZES},
                "tokenizer": {"type": "bpe", "vocab_size": 1500},
                "max_length": 256,
            },
            "data": {
                "train_file": str(folder / "train.jsonl"),
                "validation_file": str(folder / "validation.jsonl"),
                "columns": {"text": "data", "target": "target"},
            },
            "method": "full",
            "training": TRAINING | {"num_train_epochs": args.epochs},
            "generation": {"max_new_tokens": 96, "num_beams": 4},
            "metrics": ["answer_loss"],
            "output_dir": str(folder / "run"),
            "seed": args.seed,
        }
    )
    return [str(one.value) for one in ftkit.predict(run.folder, records)], run


if __name__ == "__main__":
    main()
