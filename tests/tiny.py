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
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# Decoders have room for a prompt and an answer in bytes.
_DECODER = _SIZES | {"max_position_embeddings": 256}
_GROUPED = _DECODER | {"num_key_value_heads": 2}
_SIZES_OF: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "electra": _SIZES | {"embedding_size": 32},
    "modernbert": _SIZES | {
        "global_attn_every_n_layers": 2, "local_attention": 16, "reference_compile": False,
        "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "llama": _GROUPED | {"bos_token_id": 0, "eos_token_id": 2},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    # Its window is shorter than the rows.
    "mistral": _GROUPED | {"sliding_window": 16},
    "gemma": _GROUPED | {"head_dim": 8},
    "gpt_neox": _DECODER,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    # Every other layer has a window shorter than the rows.
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 16,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "ffn_dim": 64, "max_position_embeddings": 256},
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "mt5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "max_position_embeddings": 256},
}  # fmt: skip
# These are saved with their language model head, as their checkpoints are.
_HEADED = {
    **dict.fromkeys(
        ("qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "opt", "bloom"), "AutoModelForCausalLM"
    ),
    **dict.fromkeys(("mt5", "bart"), "AutoModelForSeq2SeqLM"),
}


def build_model(architecture: str, folder: Path) -> Path:
    """Save a small model as a pretrained checkpoint is; the older ones without a head.

    Args:
        architecture: bert, distilbert, roberta, deberta-v2, electra, modernbert; gpt2, llama, qwen2, qwen3,
            mistral, gemma, gpt_neox, gpt_neo, opt, bloom; t5, mt5, bart.
        folder: Where to.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    torch.manual_seed(0)
    tokenizers = {
        "roberta": _byte_level, "gpt2": _gpt2, "llama": _llama, "t5": _t5, "qwen2": _qwen, "qwen3": _qwen,
        "mistral": _llama, "gemma": _gemma, "gpt_neox": _gpt2, "gpt_neo": _gpt2, "bloom": _gpt2,
        "opt": _opt, "mt5": _t5, "bart": _byte_level,
    }  # fmt: skip
    tokenizer = tokenizers.get(architecture, _wordpiece)(folder)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= _SIZES_OF.get(architecture, _SIZES)
    if architecture in _HEADED:
        sizes |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if architecture in ("t5", "mt5"):
        sizes |= {"decoder_start_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if architecture == "bart":
        sizes |= {"decoder_start_token_id": tokenizer.eos_token_id}
    auto = getattr(transformers, _HEADED.get(architecture, "AutoModel"))
    model = auto.from_config(AutoConfig.for_model(architecture, **sizes))
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
    return _begun(["<s>", "<unk>", "</s>"], "<s>", eos_token="</s>", unk_token="<unk>")


def _qwen(folder: Path) -> Any:
    """As Qwen's: no begin token, padding and the end of an answer apart."""
    return _plain_byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _begun(tokens: list[str], begin: str, **special: Any) -> Any:
    """With a begin token before each text."""
    from tokenizers import processors

    tokenizer = _plain_byte_level(tokens, bos_token=begin, **special)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokens.index(begin))]
    )
    return tokenizer


def _gemma(folder: Path) -> Any:
    """As Gemma's: a padding token, and a begin token before each text."""
    return _begun(
        ["<pad>", "<eos>", "<bos>", "<unk>"], "<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _opt(folder: Path) -> Any:
    """As OPT's: the end token also begins each text."""
    return _begun(["<s>", "<pad>", "</s>", "<unk>"], "</s>", eos_token="</s>", pad_token="<pad>",
                  unk_token="<unk>")  # fmt: skip


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
