"""Prompting: zero-shot and few-shot, nothing trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from ftkit.errors import UsageError
from ftkit.methods.base import Method

if TYPE_CHECKING:
    from ftkit.prompts.estimator import Plan
    from ftkit.questions import Questions
    from ftkit.training.setup import Estimator, Head, Setup

ALL = "all"
_Word = Annotated[str, Field(min_length=1)]
_Words = _Word | Annotated[list[_Word], Field(min_length=1)]


class Prompt(Method):
    """Ask the model as it is, with or without solved examples: rank the answers, or let it write one."""

    type: Literal["prompt"] = "prompt"
    trains: ClassVar[bool] = False
    path_keys: ClassVar[tuple[str, ...]] = ("encoder",)

    prompt: str | None = None
    """A prompt of the library (`ftkit list prompts`), or `all`: each is scored, and their spread reported."""
    template: Annotated[str, Field(min_length=1)] | None = None
    """Jinja that makes a row's question; the answer follows it. What it can name is the task's, such as
    `text`, `text_pair` and `labels`; with `answer: cloze` also `mask`, the place of the answer."""
    description: str | None = None
    """What stands before everything else, such as an instruction; it can name `labels`."""
    style: Literal["plain", "chat"] = "plain"
    """`plain` is one text; with `chat` the shots are earlier turns of the model's chat template."""
    num_fewshot: NonNegativeInt = 0
    """How many solved examples stand before the question."""
    shots: Literal["fixed", "random", "balanced", "nearest"] = "balanced"
    """Which training rows they are: the first, any by `seed`, as many of each label as possible, or for each
    row those most like it."""
    encoder: str | None = None
    """With `shots: nearest`, the model (Hub id, folder or package) whose embeddings tell what is alike; by
    default BM25 does."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = None
    """Choose the shots by each of these seeds; scores are means, with their deviation."""
    delimiter: str = "\n\n"
    """What stands between the examples; it also ends what is written."""
    target_delimiter: str = " "
    """What stands between a question and its answer; most tokenizers keep a space with the word after it."""
    verbalizer: dict[str, _Words] = {}
    """What the model would write for a label, or several such words; by default the label's name."""
    answer: Literal["rank", "generate", "cloze"] | None = None
    """`rank` takes the likeliest candidate, `generate` reads what the model writes, `cloze` ranks words in a
    masked language model's mask; by default `rank` where the task has candidates."""
    normalization: Literal["none", "token", "character", "byte", "pmi"] = "none"
    """What becomes of an answer's log-probability: divided by its length, so that long ones are not at a
    disadvantage, or less that after a prompt that says nothing (`pmi`)."""
    calibration: Literal["none", "contextual", "batch"] = "none"
    """Divide the candidates' probabilities by those after prompts that say nothing (`contextual`), or by
    their mean over up to 200 training texts, whose labels are not used (`batch`)."""
    constrained: bool = False
    """With `answer: generate`, whether only candidates can be written."""
    entity_format: Literal["lines", "json"] = "lines"
    """How named entities are written: lines `TYPE: words`, or JSON `[{"type": TYPE, "text": words}]`."""

    @field_validator("template", "description")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        from ftkit.prompts.template import Template

        if value is not None:
            Template(value)
        return value

    @field_validator("verbalizer")
    @classmethod
    def _distinct(cls, value: dict[str, _Words]) -> dict[str, _Words]:
        words = [word for one in value.values() for word in _several(one)]
        if any(not word.strip() for word in words):
            raise ValueError("a label has a word of white space, which no answer can be told by")
        if twice := [word for word, times in Counter(words).items() if times > 1]:
            raise ValueError(f"two labels have the word {twice[0]!r}")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Prompt:
        if self.encoder is not None and self.shots != "nearest":
            raise ValueError("encoder is for shots: nearest")
        if self.seeds is not None:
            if len(self.seeds) < 2:
                raise ValueError("seeds needs at least two different seeds; for one, set the recipe's seed")
            if twice := [seed for seed, times in Counter(self.seeds).items() if times > 1]:
                raise ValueError(f"seeds has {twice[0]} twice, which would count its shots twice")
            if self.shots in ("fixed", "nearest") or not self.num_fewshot:
                chosen = f"shots: {self.shots}" if self.num_fewshot else "num_fewshot: 0"
                raise ValueError(f"seeds does nothing with {chosen}")
        if self.constrained and self.answer != "generate":
            raise ValueError("constrained is for answer: generate")
        if self.answer == "generate" and (self.normalization, self.calibration) != ("none", "none"):
            raise ValueError("normalization and calibration are for answer: rank or cloze")
        if self.answer == "cloze" and self.style == "chat":
            raise ValueError("style: chat is not for answer: cloze: no masked language model chats")
        return self

    @property
    def families(self) -> tuple[str, ...] | None:
        return ("encoder",) if self.answer == "cloze" else ("decoder", "encoder_decoder")

    def problems(
        self, task: str, asked_by: Sequence[str], fields: Sequence[str], *, same: bool
    ) -> Iterator[tuple[str, str]]:
        """What does not go with the task: the key, and what is wrong."""
        from ftkit.prompts.library import names
        from ftkit.prompts.template import Template

        if not asked_by:
            yield "type", f"the task {task} cannot be asked in a prompt"
            return
        way = self.answer or asked_by[0]
        if way not in asked_by:
            yield "answer", f"the task {task} cannot be answered by {way}; it can by: {', '.join(asked_by)}"
        if way == "generate" and (self.normalization != "none" or self.calibration != "none"):
            yield "normalization", f"the task {task} has no candidates to rank"
        if self.calibration != "none" and not same:
            yield (
                "calibration",
                f"every row of the task {task} has candidates of its own: use normalization: pmi",
            )
        if self.constrained and "rank" not in asked_by:
            yield "constrained", f"the task {task} has no candidates to keep to"
        if self.prompt not in (None, ALL) and self.prompt not in names(task):
            known = ", ".join([*names(task), ALL])
            yield "prompt", f"there is no prompt {self.prompt!r} for {task}; there are: {known}"
        if self.prompt is not None and self.template is not None:
            yield "template", "stands beside prompt, which brings a template of its own"
        if self.template is not None:
            named = Template(self.template).fields
            allowed = [*fields, "mask"] if way == "cloze" else list(fields)
            if unknown := sorted(named - set(allowed)):
                yield "template", f"names {unknown[0]!r}; the fields are: {', '.join(allowed)}"
            elif not named & set(fields) - {"labels", "form"}:
                yield "template", "names no field of a row, so every row would get the same prompt"
        described = Template(self.description or "").fields
        if unknown := sorted(described - ({"labels", "form"} & set(fields))):
            yield "description", f"names {unknown[0]!r}, which it cannot"

    def head(self, head: Head) -> Head:
        from ftkit.training.setup import Head

        return Head(None, {})

    def estimator(self, setup: Setup) -> Estimator:
        """The estimator that asks.

        Raises:
            UsageError: The verbalizer names a label that there is not, two labels share a word, or words that
                are to be written could not be told apart.
        """
        from ftkit.prompts.estimator import PromptEstimator

        return PromptEstimator(setup, list(self._plans(setup)))

    def _plans(self, setup: Setup) -> Iterator[Plan]:
        """A plan for every prompt and seed that is asked for."""
        from ftkit.prompts import library

        prompts = library.names(setup.task_type) if self.prompt == ALL else [self.prompt]
        for prompt in prompts:
            for seed in self.seeds or [setup.seed]:
                names = [prompt or ""] if len(prompts) > 1 else []
                names += [f"seed {seed}"] if self.seeds else []
                yield self._plan(setup, prompt, seed, ", ".join(names))

    def _plan(self, setup: Setup, prompt: str | None, seed: int, name: str) -> Plan:
        from ftkit.prompts import library
        from ftkit.prompts.estimator import Plan
        from ftkit.prompts.prompting import Prompting
        from ftkit.prompts.template import Template

        found = library.find(setup.task_type, prompt) if prompt else library.Entry()
        assert setup.questions is not None
        words = self._words(setup.labels)
        questions: Questions = setup.questions(words, self.entity_format)
        way = self.answer or setup.asked_by[0]
        if way == "generate" and questions.unreadable:
            raise UsageError(
                f"method.answer: generate: {questions.unreadable}",
                hint="name it otherwise in method.verbalizer",
            )
        chat = self.style == "chat"
        description = self.description if self.description is not None else found.description
        return Plan(
            name=name,
            prompting=Prompting(
                questions=questions,
                template=Template(self.template or found.template or questions.template),
                description=Template(description),
                delimiter=self.delimiter,
                target_delimiter=self.target_delimiter,
                chat=chat,
                cloze=way == "cloze",
            ),
            num_fewshot=self.num_fewshot,
            shots=self.shots,
            seed=seed,
            encoder=self.encoder,
            answer=way,
            normalization=self.normalization,
            calibration=self.calibration,
            constrained=self.constrained,
            # An answer holds spaces, so one alone ends none.
            until=(self.delimiter,) if not chat and self.delimiter.strip(" ") else (),
        )

    def _words(self, labels: Sequence[str]) -> dict[str, list[str]]:
        """What is written for each label."""
        if unknown := [label for label in self.verbalizer if label not in labels]:
            raise UsageError(
                f"method.verbalizer: {unknown[0]!r} is no label", hint=f"labels: {', '.join(labels[:12])}"
            )
        words = {label: _several(self.verbalizer.get(label, label)) for label in labels}
        every = [word for one in words.values() for word in one]
        if twice := [word for word, times in Counter(every).items() if times > 1]:
            raise UsageError(f"method.verbalizer: two labels have the word {twice[0]!r}")
        return words


def _several(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)
