"""GGUF files: unpacked without loss, used by every verb, refused when broken."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf as writer
import numpy
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

import ftkit as library
from ftkit.cli import console, main
from ftkit.models import gguf
from ftkit.models.source import ModelSource

SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
TEXTS = ["the red card", "Where is 12345 -- naïve?  two  spaces\n\nand a tab\t", "<|end|>the green phone"]
HEAVY = ("torch", "transformers", "peft", "datasets", "gguf")
Q8_0 = writer.GGMLQuantizationType.Q8_0


class Model:
    """A tiny LLaMA, as transformers holds it and as a GGUF file.

    Args:
        path: Where the file is written to.
        tied: Whether the output layer is the embedding, which the file then holds once.
        quantized: Whether its matrices are Q8_0; the model in memory gets what is left of them.
    """

    def __init__(self, path: Path, *, tied: bool, quantized: bool) -> None:
        self.path = path
        self.tokenizer = _tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, initializer_range=0.2,
            tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).eval()
        for name, parameter in self.model.named_parameters():
            # Norms that are all ones would hide one that is lost or in the place of another.
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        self._write(quantized=quantized)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _write(self, *, quantized: bool) -> None:
        config = self.model.config
        file = writer.GGUFWriter(self.path, "llama")
        file.add_context_length(config.max_position_embeddings)
        file.add_embedding_length(config.hidden_size)
        file.add_feed_forward_length(config.intermediate_size)
        file.add_block_count(config.num_hidden_layers)
        file.add_head_count(config.num_attention_heads)
        file.add_head_count_kv(config.num_key_value_heads)
        file.add_layer_norm_rms_eps(config.rms_norm_eps)
        file.add_rope_dimension_count(config.head_dim)
        file.add_rope_freq_base(config.rope_parameters["rope_theta"])
        file.add_vocab_size(config.vocab_size)
        bpe = json.loads(self.tokenizer.backend_tokenizer.to_str())["model"]
        tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
        file.add_tokenizer_model("gpt2")
        file.add_token_list(tokens)
        kinds = writer.TokenType
        file.add_token_types([kinds.CONTROL if token in SPECIAL else kinds.NORMAL for token in tokens])
        file.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
        file.add_bos_token_id(0)
        file.add_eos_token_id(1)
        file.add_pad_token_id(2)
        file.add_add_bos_token(True)
        file.add_chat_template(TEMPLATE)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        names = writer.get_tensor_name_map(writer.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, parameter in self.model.named_parameters():
            values = parameter.detach().numpy()
            for projection, number in heads.items():
                if projection in name:
                    values = _permuted(values, number)
            known = names.get_name(name, try_suffixes=(".weight",))
            if quantized and values.ndim == 2:
                blocks = writer.quants.quantize(values, Q8_0)
                file.add_tensor(known, blocks, raw_dtype=Q8_0)
                rounded = writer.quants.dequantize(
                    writer.quants.quantize(parameter.detach().numpy(), Q8_0), Q8_0
                )
                parameter.data = torch.from_numpy(rounded)
            else:
                file.add_tensor(known, values)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with some merges and a begin token before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["where is the red card and the green and the blue phone"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    begin, end, padding = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=padding
    )


def _permuted(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the halves of a head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where files are unpacked to, here and in subprocesses."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "ftkit" / "gguf"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python package that carries both files, and cannot be imported."""
    folder = tmp_path_factory.mktemp("site") / "carries_gguf"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return folder


@pytest.fixture(scope="module")
def plain(package: Path) -> Model:
    return Model(package / "plain.gguf", tied=False, quantized=False)


@pytest.fixture(scope="module")
def quantized(package: Path) -> Model:
    return Model(package / "weights" / "quantized.gguf", tied=True, quantized=True)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, colours: Path
) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process on a recipe with that model; returns exit code and error."""
    monkeypatch.setattr(console, "start", lambda **_: None)

    def run(verb: str, **model: Any) -> tuple[int, str]:
        tree = {
            "task": "classification", "model": model, "data": {"data_dir": str(colours)}, "method": "full",
            "training": {"num_train_epochs": 1}, "output_dir": "run",
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
        monkeypatch.setattr(sys, "argv", ["ftkit", verb, str(tmp_path / "recipe.yaml")])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


# Unpacking


@pytest.mark.parametrize("kind", ["plain", "quantized"])
def test_unpacked_is_the_model_that_was_written(
    kind: str, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Model = request.getfixturevalue(kind)
    folder = gguf.unpacked(made.path)
    assert folder == cache / made.sha256
    assert json.loads((folder / "ftkit_gguf.json").read_text()) == {
        "file": made.path.name, "sha256": made.sha256
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        inputs = made.tokenizer(text, return_tensors="pt")
        assert tokenizer(text)["input_ids"] == inputs["input_ids"][0].tolist()
        assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text
        with torch.no_grad():
            wanted, got = made.model(**inputs).logits, model(**inputs).logits
        assert wanted.std() > 0.1
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == SPECIAL
    assert tokenizer.chat_template == TEMPLATE
    assert model.config.max_position_embeddings == 128
    assert model.generation_config.eos_token_id == 1
    # transformers refuses to save what it takes for quantized.
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_file_is_unpacked_once(plain: Model, cache: Path, tmp_path: Path) -> None:
    folder = gguf.unpacked(plain.path)
    before = _times(cache)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(plain.path.read_bytes())
    assert gguf.unpacked(renamed) == folder == gguf.unpacked(plain.path)
    assert _times(cache) == before
    located = ModelSource(name_or_path=str(renamed)).locate()
    assert located.sha256() == plain.sha256
    ready = located.ready()
    assert (ready.folder, ready.gguf, ready.config["hidden_size"]) == (folder, None, 32)


def _times(folder: Path) -> dict[Path, int]:
    """When each file and folder was changed; a draft changes the folder that it is made in."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_another_process_may_be_faster(plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = gguf.cached_folder(plain.sha256)

    def unpack(_: Path, draft: Path) -> None:
        for place in (draft, folder):
            place.mkdir(parents=True, exist_ok=True)
            (place / "by").write_text("us" if place == draft else "them")

    monkeypatch.setattr(gguf, "_unpack_to", unpack)
    assert gguf.unpacked(plain.path) == folder
    assert (folder / "by").read_text() == "them"
    assert list(folder.parent.iterdir()) == [folder], "the draft is gone"


def test_unpacking_draws_no_bar(
    plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--quiet` promises an empty standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gguf.unpacked(plain.path)
    assert capfd.readouterr().err == ""


# Every verb


@pytest.fixture(scope="module")
def runs(
    plain: Model, quantized: Model, package: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, library.Run]:
    """A full run on the plain file, by its path, and a LoRA run on the quantized one, in its package."""
    folder = tmp_path_factory.mktemp("runs")
    tree = {
        "task": "classification", "data": {"data_dir": str(colours)}, "engine": {"precision": "fp32"},
        "training": {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
        "seed": 7,
    }  # fmt: skip
    names = {"full": str(plain.path), "lora": "package:carries_gguf/weights/quantized.gguf"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        return {
            method: library.finetune(
                tree | {"model": {"name_or_path": name}, "method": method, "output_dir": str(folder / method)}
            )
            for method, name in names.items()
        }


@pytest.fixture(scope="module")
def later(runs: dict[str, library.Run], package: Path, cache: Path) -> dict[str, Any]:
    """What a fresh process makes of these runs: first the model card's Python alone, then ftkit's verbs.

    One process, since importing torch and transformers takes longer than all that it does.
    """
    folder = runs["lora"].folder
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    code = code.replace('"..."', repr("the red card")).replace("max_length=", "top_k=None, max_length=")
    commands = [
        [*verb, "--json"]
        for method in runs
        for verb in (["eval", method], ["predict", method, "--text", "the red card"])
    ]
    commands.append(["export", "lora", "--merge", "--output", "merged", "--json"])
    again = [str(runs["full"].folder / "recipe.yaml"), "--set", "output_dir=again", "--json", "--quiet"]
    commands += [["check", *again[:-1]], ["finetune", *again]]
    program = f"""
import contextlib, io, json, os, sys
def printed(call):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            call()
        except SystemExit as stop:
            assert not stop.code, out.getvalue()
    return out.getvalue()
os.chdir("lora")
card = printed(lambda: exec({code!r}, {{}}))
assert "ftkit" not in sys.modules
os.chdir("..")
from ftkit.cli import main
verbs = []
for arguments in {commands!r}:
    sys.argv = ["ftkit", *arguments]
    verbs.append(json.loads(printed(main)))
print(json.dumps([card, verbs]))
"""
    before = _times(cache)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder.parent, capture_output=True, text=True, timeout=200,
        check=False, env=os.environ | {"PYTHONPATH": _python_path(package.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _times(cache) == before, "unpacked again"
    card, verbs = json.loads(done.stdout.splitlines()[-1])
    keys = [f"{verb} {method}" for method in runs for verb in ("eval", "predict")]
    return {"card": ast.literal_eval(card)} | dict(
        zip([*keys, "export", "check", "finetune"], verbs, strict=True)
    )


def _python_path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_scored_and_used_in_a_fresh_process(
    method: str,
    runs: dict[str, library.Run],
    later: dict[str, Any],
    plain: Model,
    quantized: Model,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = runs[method]
    assert run.manifest["base_model"]["sha256"] == (plain if method == "full" else quantized).sha256
    assert run.manifest["training"]["new_parameters"] == ["score.weight"]
    assert later[f"eval {method}"]["metrics"] == run.metrics["metrics"]
    (answer,) = later[f"predict {method}"]["predictions"]
    monkeypatch.syspath_prepend(package.parent)
    (here,) = library.predict(run, ["the red card"])
    assert answer["label"] == here.value
    assert answer["scores"] == pytest.approx(here.scores, abs=1e-5)


def test_model_card_and_merged_export_predict_the_same(
    later: dict[str, Any], runs: dict[str, library.Run]
) -> None:
    (answer,) = later["predict lora"]["predictions"]
    assert len(set(answer["scores"].values())) == 3, "a score of its own for each label"
    assert {one["label"]: one["score"] for one in later["card"]} == pytest.approx(answer["scores"], abs=1e-5)
    assert later["card"][0]["label"] == answer["label"]
    classify = pipeline("text-classification", model=later["export"]["model"], top_k=None)
    merged = {one["label"]: one["score"] for one in classify(["the red card"])[0]}
    assert merged == pytest.approx(answer["scores"], abs=1e-4)


def test_a_run_is_the_same_whether_its_file_was_unpacked_before(
    plain: Model, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    heads = []
    for name in ("first", "second"):
        run = library.finetune(
            {
                "task": "classification", "data": {"data_dir": str(colours)}, "method": "full",
                "model": {"name_or_path": str(plain.path)}, "engine": {"precision": "fp32"},
                "training": {"max_steps": 1, "learning_rate": 1e-5}, "output_dir": str(tmp_path / name),
            }
        )  # fmt: skip
        heads.append((run.folder / "model" / "model.safetensors").read_bytes())
    assert heads[0] == heads[1]


def test_command_and_python_give_the_same_run(later: dict[str, Any], runs: dict[str, library.Run]) -> None:
    assert later["check"]["model"] == f"{runs['full'].recipe.model.name_or_path} (decoder)"
    assert later["finetune"]["metrics"] == runs["full"].metrics["metrics"]
    again = Path(later["finetune"]["run"]) / "model" / "model.safetensors"
    assert again.read_bytes() == (runs["full"].folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", ["PLAIN", "package:carries_gguf/plain.gguf", "package:carries_gguf/weights/quantized.gguf"]
)
def test_where_a_file_is_found(
    name: str, plain: Model, quantized: Model, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines for the model card find the same file."""
    monkeypatch.syspath_prepend(package.parent)
    source = ModelSource(name_or_path=name.replace("PLAIN", str(plain.path)))
    located = source.locate()
    assert located.config == {"model_type": "llama"}
    made = quantized if "quantized" in name else plain
    assert located.sha256() == made.sha256
    said: dict[str, Any] = {}
    exec(f"{source.snippet()}\noptions = dict(_=0{source.snippet_options()})", said)
    assert Path(said["base"], said["options"]["gguf_file"]).samefile(made.path)


def test_check_imports_nothing_heavy(plain: Model, colours: Path, tmp_path: Path) -> None:
    tree = {
        "task": "classification", "model": {"name_or_path": "plain.gguf", "sha256": plain.sha256},
        "data": {"data_dir": str(colours)}, "method": "lora", "output_dir": "run",
    }  # fmt: skip
    (plain.path.parent / "recipe.yaml").write_text(json.dumps(tree))
    program = (
        "import sys; from ftkit.cli import main\n"
        f"sys.argv = ['ftkit', 'check', {str(plain.path.parent / 'recipe.yaml')!r}, '--json']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == f"{plain.path} (decoder)"
    assert done.stderr.splitlines()[-1] == "[]"
    assert not (tmp_path / "cache").exists(), "check unpacks nothing"


# Bad input


def _cut(where: Callable[[Any], int]) -> Callable[[Path], bytes]:
    """The beginning of a file, up to where its reader says."""
    return lambda good: good.read_bytes()[: where(writer.GGUFReader(good))]


def _last(reader: Any) -> int:
    return max(tensor.data_offset for tensor in reader.tensors)


def _changed(old: bytes, new: bytes) -> Callable[[Path], bytes]:
    def change(good: Path) -> bytes:
        content = good.read_bytes()
        assert content.count(old) == 1
        return content.replace(old, new)

    return change


def _architecture(name: str) -> Callable[[Path], bytes]:
    """A file of that architecture, as far as its header says so."""

    def write(good: Path) -> bytes:
        path = good.with_name("other.gguf")
        file = writer.GGUFWriter(path, name)
        file.add_tensor("x", numpy.ones(32, dtype=numpy.float32))
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return path.read_bytes()

    return write


def _nested(_: Path) -> bytes:
    """An array of an array of an array, and so on."""
    key = struct.pack("<Q1sI", 1, b"x", 9)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 9, 1) * 5000


KEY = b"tokenizer.chat_template" + struct.pack("<I", 8)
BEGIN = b"tokenizer.ggml.bos_token_id" + struct.pack("<I", 4)
LENGTH = struct.pack("<Q", len(TEMPLATE))
EARLY = "the GGUF file is broken: its header ends too early"
AGAIN = "copy or download the file again"

BROKEN: dict[str, tuple[Callable[[Path], bytes], str, int, tuple[str, ...]]] = {
    "empty": (lambda _: b"", "check", 3, ("this is no GGUF file",)),
    "text": (lambda _: b"GGML, not what it says", "check", 3, ("this is no GGUF file", "are not 'GGUF'")),
    "old": (
        lambda good: b"GGUF\1" + good.read_bytes()[5:], "check", 3, ("version 1 is not among 2, 3", AGAIN)
    ),
    "cut in the counts": (_cut(lambda _: 20), "check", 3, (EARLY, AGAIN)),
    "cut in a key": (_cut(lambda _: 40), "check", 3, (EARLY, AGAIN)),
    "cut in the vocabulary": (
        _cut(lambda reader: reader.fields["tokenizer.ggml.tokens"].offset + 1000), "check", 3, (EARLY, AGAIN)
    ),
    "cut in the tensor table": (_cut(lambda reader: reader.data_offset - 100), "check", 3, (EARLY, AGAIN)),
    "cut before the tensors": (
        _cut(lambda reader: reader.data_offset), "check", 3, ("the GGUF file is cut short", AGAIN)
    ),
    "cut in the tensors": (
        _cut(lambda reader: (reader.data_offset + _last(reader)) // 2), "check", 3,
        ("the GGUF file is cut short: ", " bytes, and its last tensor begins at ", AGAIN),
    ),
    "cut in the last tensor": (
        _cut(lambda reader: _last(reader) + 1000), "finetune", 3, ("the GGUF file cannot be read: ",)
    ),
    "length beyond 2**63": (
        _changed(KEY + LENGTH, KEY + b"\xff" * 8), "check", 3, ("the GGUF file is broken: ",)
    ),
    "length below 2**63": (
        _changed(KEY + LENGTH, KEY + struct.pack("<Q", 2**63 - 1)), "check", 3, ("the GGUF file is broken: ",)
    ),
    "arrays in arrays": (_nested, "check", 3, ("the GGUF file is broken: ",)),
    "no architecture": (
        _changed(b"general.architecture", b"general.architectura"), "check", 3, ("no general.architecture",)
    ),
    "a tensor lost": (
        _changed(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"), "finetune", 3,
        ("model.layers.1.mlp.down_proj.weight",),
    ),
    "impossible numbers": (
        _changed(BEGIN + struct.pack("<I", 0), BEGIN + struct.pack("<I", 10_000)), "finetune", 3,
        ("the GGUF file cannot be read: ",),
    ),
    "no family's": (
        _architecture("clip"), "check", 2, ("no family takes a model of type 'clip'", "decoder (gpt2,")
    ),
    "not for transformers": (
        _architecture("olmo"), "finetune", 3, ("cannot be read: ", "architecture olmo is not supported")
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "verb", "code", "says"),
    [pytest.param(*case, id=name) for name, case in BROKEN.items()],
)
def test_broken_file(
    spoil: Callable[[Path], bytes],
    verb: str,
    code: int,
    says: tuple[str, ...],
    plain: Model,
    cache: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
) -> None:
    good = tmp_path / "good.gguf"
    good.write_bytes(plain.path.read_bytes())
    (tmp_path / "bad.gguf").write_bytes(spoil(good))
    drafts = sorted(cache.glob("*"))
    found, error = command(verb, name_or_path="bad.gguf")
    assert found == code, error
    _is_told(error, str(tmp_path / "bad.gguf"), *says)
    assert sorted(cache.glob("*")) == drafts, "nothing half unpacked is left"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name_or_path": "missing.gguf"}, ["missing.gguf: no such GGUF file"]),
        ({"name_or_path": "/nowhere/missing.gguf"}, ["/nowhere/missing.gguf: no such GGUF file"]),
        ({"name_or_path": "folder.gguf"}, ["folder.gguf: this is a folder, not a GGUF file"]),
        ({"name_or_path": "package:not_here/x.gguf"}, ["'not_here' is not installed"]),
        ({"name_or_path": "package:carries_gguf/x.gguf"}, ["no folder or file 'x.gguf'", "plain.gguf"]),
        ({"name_or_path": "PLAIN", "sha256": "f" * 64}, ["SHA-256 REAL, the recipe says fff", "correct"]),
    ],
    ids=["missing", "missing, absolute", "folder", "no package", "not in the package", "SHA-256"],
)  # fmt: skip
def test_wrong_name(
    model: dict[str, str],
    says: list[str],
    plain: Model,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str]],
) -> None:
    (tmp_path / "folder.gguf").mkdir()
    monkeypatch.syspath_prepend(package.parent)
    model = {key: value.replace("PLAIN", str(plain.path)) for key, value in model.items()}
    code, error = command("check", **model)
    assert code == 3, error
    _is_told(error, *(words.replace("REAL", plain.sha256) for words in says))


def test_the_package_gguf_is_missing(
    plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str]]
) -> None:
    """`check` needs nothing, training says what to install; what is unpacked is used without it."""
    folder = gguf.unpacked(plain.path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError(\"No module named 'gguf'\", name='gguf')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert gguf.unpacked(plain.path) == folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert command("check", name_or_path=str(plain.path))[0] == 0
    code, error = command("finetune", name_or_path=str(plain.path))
    assert code == 3, error
    _is_told(error, "GGUF files need a further package: No module named 'gguf'", "pip install gguf")


@pytest.mark.parametrize(
    "where",
    ["a link", "qwen3moe"],
)
def test_check_takes_what_finetune_takes(
    where: str, plain: Model, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """The Hub's cache holds links to files that are named for their content."""
    good, name = tmp_path / "good.gguf", tmp_path / "name.gguf"
    good.write_bytes(plain.path.read_bytes())
    if where == "a link":
        name.symlink_to(good.rename(tmp_path / plain.sha256))
    else:
        name.write_bytes(_architecture(where)(good))
    code, error = command("check", name_or_path=str(name))
    assert code == 0, error


def _is_told(error: str, *says: str) -> None:
    """As a tool fails, not as a program breaks."""
    assert "Traceback" not in error
    message = error[error.index("error: ") :].strip()
    assert len(message.splitlines()) <= 3, message
    for words in says:
        assert words in message, f"{words!r} is not in: {message}"
