"""Tiny pretrained models, built from a configuration, and tiny data: nothing is downloaded."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real data sets that tests read where they are there."""

WORDS = (
    "the a of and to in it is was for on that with red green blue my your order where when "
    "not card money back want please help good bad film game phone sports world business"
).split()

_SIZES: dict[str, Any] = {
    "vocab_size": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def build_model(architecture: str, folder: Path) -> Path:
    """Save a small encoder without a task head, as a pretrained checkpoint is.

    Args:
        architecture: bert, distilbert, roberta, deberta-v2, electra, modernbert; gpt2, llama; t5.
        folder: Where to.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    tokenizers = {"roberta": _byte_level, "gpt2": _gpt2, "llama": _llama, "t5": _t5}
    tokenizer = tokenizers.get(architecture, _wordpiece)(folder)
    sizes = {**_SIZES, "vocab_size": len(tokenizer)}
    if architecture == "distilbert":
        sizes = {"vocab_size": len(tokenizer), "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
                 "max_position_embeddings": 64}  # fmt: skip
    if architecture == "gpt2":
        sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    if architecture == "llama":
        sizes |= {
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }
    if architecture == "t5":
        sizes = {"vocab_size": len(tokenizer), "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8,
                 "d_ff": 64, "decoder_start_token_id": tokenizer.pad_token_id,
                 "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    if architecture == "electra":
        sizes["embedding_size"] = 32
    if architecture == "modernbert":
        sizes |= {"global_attn_every_n_layers": 2, "local_attention": 16, "reference_compile": False,
                  "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
    sizes["pad_token_id"] = tokenizer.pad_token_id
    model = AutoModel.from_config(AutoConfig.for_model(architecture, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _wordpiece(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def _byte_level(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
        sep_token="</s>", mask_token="<mask>", bos_token="<s>", eos_token="</s>", model_max_length=62,
    )  # fmt: skip


def _plain_byte_level(tokens: list[str], **special: Any) -> Any:
    """Byte-level BPE with the given special tokens and no post-processing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*tokens, *letters]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)


def _gpt2(folder: Path) -> Any:
    """As GPT-2's: one special token, which is no padding."""
    return _plain_byte_level(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def _llama(folder: Path) -> Any:
    """As LLaMA's: a begin token before each text, no padding token."""
    from tokenizers import processors

    tokenizer = _plain_byte_level(
        ["<s>", "<unk>", "</s>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def _t5(folder: Path) -> Any:
    """As T5's: an end token after each text."""
    from tokenizers import processors

    sentinels = [f"<extra_id_{number}>" for number in range(20)]
    tokenizer = _plain_byte_level(
        ["<pad>", "</s>", "<unk>", *sentinels], pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=sentinels,
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def write_colours(path: Path, rows: int, seed: int) -> None:
    """Rows of random length whose label is the colour they name."""
    generator = random.Random(seed)
    words = "the a of and to in it is was for on that with".split()
    lines = ["text,label"]
    for number in range(rows):
        label = ("red", "green", "blue")[number % 3]
        text = generator.choices(words, k=generator.randint(2, 20))
        text.insert(generator.randrange(len(text)), label)
        lines.append(f"{' '.join(text)},{label}")
    path.write_text("\n".join(lines) + "\n")
