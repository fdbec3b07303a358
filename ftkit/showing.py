"""Show: what a model sees of the training rows, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ftkit.dataset import load_records
from ftkit.errors import InputError, UsageError
from ftkit.estimator import family_of, texts_of
from ftkit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.records import Record
    from ftkit.training.heads import Features, Objective

_FEWEST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Example:
    """A row of features.

    Attributes:
        where: The row of the data that it is made of, or begins in; of a packed sequence, its first ones.
        reads: The tokens that go in.
        learned: For each of them, whether the model learns to say it there; empty for a head that says
            something else.
        answer: What is learned besides: the label, or the tokens that a decoder writes.
        rows: Of a packed sequence, the first token of each row and the row's place.
    """

    where: str
    reads: tuple[str, ...]
    learned: tuple[bool, ...]
    answer: str = ""
    rows: tuple[tuple[int, str], ...] = ()

    def lines(self) -> Iterator[str]:
        """The example for a person to read: a token a line, what is learned marked."""
        count = sum(self.learned)
        yield f"{self.where}: {len(self.reads)} tokens" + (f", {count} learned (>)" if self.learned else "")
        begins, first = dict(self.rows), 0
        for number, token in enumerate(self.reads):
            if number in begins:
                first = number
                yield f"    -- {begins[number]}"
            mark = ">" if self.learned and self.learned[number] else " "
            yield f"{number - first:>5} {mark} {token}"
        if self.answer:
            yield f"      = {self.answer}"


def prompt_examples(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """The prompts of the first rows that would be scored, as they are written, with their shots.

    Only the tokenizer is loaded, not the model; so no shot is dropped for want of room.

    Raises:
        InputError: Data or tokenizer are not as the recipe needs them.
        UsageError: The method has no prompts.
    """
    from ftkit.estimator import make_estimator
    from ftkit.models import loading
    from ftkit.training.setup import Explains

    dataset = load_records(recipe.data, recipe.task, trains=False)
    scored = dataset["test"] or dataset["validation"] or dataset["train"]
    located = recipe.model.locate().ready()
    family_of(recipe, loading.load_config(located, recipe.model).to_dict())
    tokenizer = loading.load_tokenizer(located, recipe.model)
    estimator = make_estimator(recipe, dataset.labels, learned={})
    if not isinstance(estimator, Explains):
        raise UsageError(f"the prompts of method {recipe.method.type} cannot be shown")
    return estimator.rendered(scored[:count], dataset["train"], tokenizer)


def training_examples(recipe: Recipe, count: int) -> list[Example]:
    """The first rows that training sees.

    Only the tokenizer is loaded, not the model.

    Raises:
        InputError: Data or tokenizer are not as the recipe needs them.
    """
    from ftkit.training.packing import Packed

    dataset = load_records(recipe.data, recipe.task)
    train = dataset["train"]
    known = recipe.task.learned(train, dataset.labels)
    objective, tokenizer, longest = _reader(recipe, train, known, dataset.labels)
    objective.prepare(tokenizer, longest)
    # Which rows share a sequence is known when all are.
    looked = train if objective.packing else train[: max(count, _FEWEST_ROWS)]
    encoded = objective.training_rows(looked, tokenizer, longest)
    if not encoded.features:
        raise InputError(f"nothing can be learned from the first {len(looked)} rows: {encoded.notes[0]}")

    def where(row: int) -> str:
        return train[encoded.owners[row]].where

    def example(number: int, row: Features) -> Example:
        seen = objective.vary(row, (recipe.seed, 0, number))
        reads, learned, answer = _tokens(seen, objective, tokenizer)
        if packed is None:
            return Example(where(number), reads, learned, answer)
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        rows = tuple(zip(starts, (where(one) for one in packed.groups[number]), strict=True))
        return Example(packed.place(number, where), reads, learned, answer, rows)

    packed = Packed(encoded.features, longest) if objective.packing else None
    features: Sequence[Features] = encoded.features if packed is None else packed
    return [example(number, row) for number, row in enumerate(islice(features, count))]


def _reader(
    recipe: Recipe, train: Sequence[Record], known: Mapping[str, Any], labels: Sequence[str]
) -> tuple[Objective, PreTrainedTokenizerBase, int]:
    """What the recipe's model learns, its tokenizer, and the most tokens that it reads."""
    from ftkit.models import fresh, loading

    def objective(family: str) -> Objective:
        return recipe.task.objective(labels, known, family=family, label_smoothing=0.0)

    source = recipe.model
    if source.from_config is not None:
        family = family_of(recipe, source.from_config).name()
        learned = objective(family)
        tokenizer = fresh.tokenizer_of(source, family, partial(texts_of, train, learned))
        return learned, tokenizer, source.max_length or 512
    located = source.locate().ready()
    found = loading.load_config(located, source)
    learned = objective(family_of(recipe, found.to_dict()).name())
    tokenizer = loading.load_tokenizer(located, source)
    return learned, tokenizer, loading.longest_input(found, tokenizer, source.max_length)


def _tokens(
    row: Features, objective: Objective, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[str, ...], tuple[bool, ...], str]:
    """What goes in, which of it is learned, and what is learned besides."""
    from ftkit.training.heads import IGNORED
    from ftkit.training.language_head import LanguageHead

    reads = tuple(map(str, tokenizer.convert_ids_to_tokens(row["input_ids"])))
    labels = row.get("labels")
    if labels is None:
        return reads, (), ""
    if objective.per_token:
        return reads, tuple(label != IGNORED for label in labels), ""
    if isinstance(objective, LanguageHead):
        return reads, (), " ".join(tokenizer.convert_ids_to_tokens(labels))
    return reads, (), str(labels)
