"""Prompting: zero-shot and few-shot, nothing trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator

from ftkit.errors import UsageError
from ftkit.methods.base import Method

if TYPE_CHECKING:
    from ftkit.training.setup import Estimator, Head, Setup


class Prompt(Method):
    """Ask the model as it is: rank the answers after a prompt with or without solved examples."""

    type: Literal["prompt"] = "prompt"
    trains: ClassVar[bool] = False
    answers: ClassVar[tuple[str, ...] | None] = ("label",)
    families: ClassVar[tuple[str, ...] | None] = ("decoder",)

    template: Annotated[str, Field(min_length=1)] = "{{ text }}\nLabel:"
    """Jinja that makes a row's prompt from its fields `text` and `text_pair`; the answer follows it."""
    description: str = ""
    """What stands before everything else, such as an instruction."""
    num_fewshot: NonNegativeInt = 0
    """How many solved examples stand before the question."""
    shots: Literal["fixed", "random", "balanced"] = "balanced"
    """Which training rows they are: the first, any by `seed`, or as many of each label as possible."""
    delimiter: str = "\n\n"
    """What stands between the examples."""
    target_delimiter: str = " "
    """What stands between a prompt and its answer; most tokenizers keep a space with the word after it."""
    verbalizer: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """What the model would write for a label; by default its name."""
    length_normalization: Literal["none", "token", "character", "byte"] = "none"
    """What an answer's log-probability is divided by, so that long ones are not at a disadvantage."""

    @field_validator("template")
    @classmethod
    def _is_template(cls, value: str) -> str:
        from ftkit.prompts.template import Template

        fields = Template(value).fields
        if unknown := sorted(fields - {"text", "text_pair"}):
            raise ValueError(f"the template names {unknown[0]!r}; the fields are: text, text_pair")
        if not fields:
            raise ValueError("the template names no field, so every row would get the same prompt")
        return value

    @field_validator("verbalizer")
    @classmethod
    def _distinct(cls, value: dict[str, str]) -> dict[str, str]:
        if twice := [word for word, times in Counter(value.values()).items() if times > 1]:
            raise ValueError(f"two labels have the word {twice[0]!r}")
        return value

    def head(self, head: Head) -> Head:
        from ftkit.training.setup import Head

        return Head(None, {})

    def estimator(self, setup: Setup) -> Estimator:
        """The estimator that ranks.

        Raises:
            UsageError: The verbalizer names a label that there is not, or two labels share a word.
        """
        from ftkit.prompts.estimator import PromptEstimator, Prompting
        from ftkit.prompts.template import Template

        return PromptEstimator(
            setup,
            Prompting(
                template=Template(self.template),
                description=self.description,
                delimiter=self.delimiter,
                target_delimiter=self.target_delimiter,
                words=self._words(setup.labels),
                num_fewshot=self.num_fewshot,
                shots=self.shots,
                length_normalization=self.length_normalization,
            ),
        )

    def _words(self, labels: Sequence[str]) -> dict[str, str]:
        if unknown := [label for label in self.verbalizer if label not in labels]:
            raise UsageError(
                f"method.verbalizer: {unknown[0]!r} is no label", hint=f"labels: {', '.join(labels[:12])}"
            )
        words = {label: self.verbalizer.get(label, label) for label in labels}
        if twice := [word for word, times in Counter(words.values()).items() if times > 1]:
            raise UsageError(f"method.verbalizer: two labels have the word {twice[0]!r}")
        return words
