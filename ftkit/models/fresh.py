"""Fresh models: from a configuration, with random weights and a tokenizer trained on the data."""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from ftkit.errors import InputError
from ftkit.models.loading import explained, load_tokenizer, longest_input
from ftkit.models.source import FreshTokenizer, ModelSource
from ftkit.training.positions import positions_of
from ftkit.training.processes import from_main_process
from ftkit.training.setup import Head, Loaded

log = logging.getLogger("ftkit")
_SENTINELS = 100
_END = "<|endoftext|>"
_BEGINNING = "▁"
# Names that configurations take and hold under others.
_OLDER_NAMES = (
    "model_type",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "torch_dtype",
    "num_labels",
)


Texts = Callable[[PreTrainedTokenizerFast], Iterator[str]]
"""All that a model will read and write, given a tokenizer that knows the special tokens and nothing else."""


def build(source: ModelSource, head: Head, family: str, texts: Texts, kept: Path | None = None) -> Loaded:
    """A model with random weights, by the seed that is set.

    Args:
        source: Its configuration, and which tokenizer it has.
        head: The head, its auto class known.
        family: `decoder`, `encoder` or `encoder_decoder`.
        texts: For a tokenizer that is trained.
        kept: The file of a tokenizer that an earlier start has trained; it is taken if it is there.

    Raises:
        InputError: transformers refuses the configuration.
    """
    assert source.from_config is not None
    tokenizer = tokenizer_of(source, family, texts, kept)
    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **({"decoder_start_token_id": tokenizer.pad_token_id} if family == "encoder_decoder" else {}),
        **source.from_config,
        **head.config,
    }
    with explained(source.name):
        _refuse_unknown_names(source.from_config)
        config = AutoConfig.for_model(**values)
        _refuse_no_size(config)
        if config.vocab_size < len(tokenizer):
            raise InputError(
                f"model.from_config: vocab_size is {config.vocab_size}, "
                f"the tokenizer has {len(tokenizer)} tokens"
            )
        model = getattr(transformers, str(head.auto_class)).from_config(config)
    own_tokenizer = not isinstance(source.tokenizer, str)
    if own_tokenizer and (positions := positions_of(config.to_dict())):
        # By it a pipeline cuts what is too long.
        tokenizer.model_max_length = positions
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        new_parameters=(),
        max_length=longest_input(config, tokenizer, source.max_length),
        source=source.name,
        auto_class=str(head.auto_class),
        own_tokenizer=own_tokenizer,
    )


def _refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Transformers keeps a misspelt name beside the one that was meant, and makes another model."""
    known = AutoConfig.for_model(str(given["model_type"]))
    names = {*vars(known), *(one.name for one in fields(known)), *known.attribute_map, *_OLDER_NAMES}
    for name in given:
        if name not in names:
            close = get_close_matches(name, sorted(names), n=1)
            raise InputError(
                f"model.from_config: {given['model_type']} has no {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else ""),
                hint="the names are those of transformers' configuration class",
            )


def _refuse_no_size(config: Any) -> None:
    """Nothing can have no layers, heads, width, words or positions."""
    for name in (
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "vocab_size",
        "max_position_embeddings",
    ):
        size = getattr(config, name, None)
        if isinstance(size, int) and size < 1:
            said = type(config).attribute_map.get(name, name)
            raise InputError(f"model.from_config: {said} is {size}; it must be at least 1")


def tokenizer_of(source: ModelSource, family: str, texts: Texts, kept: Path | None = None) -> Any:
    """The tokenizer of a fresh model: another model's, or one that is trained."""
    if isinstance(source.tokenizer, str):
        borrowed = source.borrowed(source.tokenizer)
        return load_tokenizer(borrowed.locate_tokenizer(), borrowed)
    assert source.tokenizer is not None
    if kept is not None and kept.is_file():
        return _with_names(Tokenizer.from_file(str(kept)), family)
    return train_tokenizer(source.tokenizer, family, texts)


def train_tokenizer(settings: FreshTokenizer, family: str, texts: Texts) -> PreTrainedTokenizerFast:
    """A tokenizer learned from texts, with the special tokens that the family needs.

    One process trains it and the others get it: no two would give all tokens the same numbers.
    """

    def trained() -> str:
        special = list(_SPECIAL[family]["all"])
        known = Tokenizer(models.WordLevel({token: n for n, token in enumerate(special)}, _unknown(special)))
        blank = _with_names(known, family)
        marks = re.compile("|".join(map(re.escape, special)))
        tokenizer = _TRAINED[settings.type](
            settings.vocab_size, special, lambda: (marks.sub(" ", text) for text in texts(blank))
        )
        if around := _SPECIAL[family]["around"]:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=around[0],
                pair=around[1],
                special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
            )
        return str(tokenizer.to_str())

    return _with_names(Tokenizer.from_str(from_main_process(trained)), family)


def _with_names(tokenizer: Tokenizer, family: str) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL[family]["named"])


# What each family's tokens are called, and where they stand: those of GPT-2, BERT and T5.
_SPECIAL: dict[str, dict[str, Any]] = {
    "decoder": {
        "all": (_END, "<unk>"),
        "named": {"bos_token": _END, "eos_token": _END, "unk_token": "<unk>"},
        "around": None,
    },
    "encoder": {
        "all": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "named": {
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "around": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    },
    "encoder_decoder": {
        "all": ("<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(_SENTINELS))),
        "named": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "around": ("$A </s>", "$A </s> $B </s>"),
    },
}  # fmt: skip


def _unknown(special: list[str]) -> str:
    return next(token for token in special if "unk" in token.lower())


def _character(size: int, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    counts = Counter(character for text in texts() for character in text)
    # Of equally common ones, those with the lowest code points: the same whatever the order of the texts.
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept, rare = ranked[: size - len(special)], ranked[size - len(special) :]
    if rare:
        share = sum(counts[character] for character in rare) / counts.total()
        log.warning(
            "  note: %d characters do not fit into model.tokenizer.vocab_size %d and are unknown: %.2g %% "
            "of the text (the commonest: %r)",
            len(rare), size, 100 * share, rare[0],
        )  # fmt: skip
    seen = sorted(kept)
    vocabulary = {token: number for number, token in enumerate([*special, *seen])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_unknown(special)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bpe(size: int, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _wordpiece(size: int, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """Merges of characters as in byte-pair encoding, on words whose beginning is marked.

    The trainer that tokenizers has for such vocabularies numbers characters by chance, and by these
    numbers it breaks ties: no two of its results are the same.
    """
    words = (normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer())
    learner = Tokenizer(models.BPE())
    learner.normalizer = words[0]
    learner.pre_tokenizer = pre_tokenizers.Sequence([words[1], pre_tokenizers.Metaspace(_BEGINNING)])
    alphabet = list(string.ascii_lowercase + string.digits + string.punctuation)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts(), trainer)
    numbers = learner.get_vocab()
    learned = [token for token in sorted(numbers, key=numbers.__getitem__) if token != _BEGINNING]
    single = [token for token in learned if len(token) == 1]
    longer = [
        token.removeprefix(_BEGINNING) if token.startswith(_BEGINNING) else f"##{token}"
        for token in learned
        if len(token) > 1
    ]
    tokens = dict.fromkeys([*special, *single, *(f"##{token}" for token in single), *longer])
    vocabulary = {token: number for number, token in enumerate(list(tokens)[: max(size, len(special))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_unknown(special)))
    tokenizer.normalizer, tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _unigram(size: int, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token=_unknown(special), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


_TRAINED: dict[str, Callable[[int, list[str], Callable[[], Iterator[str]]], Tokenizer]] = {
    "character": _character,
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}
