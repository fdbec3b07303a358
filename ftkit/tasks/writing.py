"""What tasks have in common whose answer is a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ftkit.errors import InputError
from ftkit.records import Prediction, Record, Writing
from ftkit.tasks.as_text import generation_lines, writing_family
from ftkit.tasks.base import Task
from ftkit.tasks.reading import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.training.heads import Objective
    from ftkit.training.language_head import Kind
    from ftkit.training.setup import Head
    from ftkit.training.writing import Rendered

_LONGEST_SHOWN = 60


class WritingTask(Task):
    """A task whose answer is a text that the model writes."""

    families: ClassVar[tuple[str, ...] | None] = ("decoder", "encoder_decoder")
    pipeline: ClassVar[str | None] = None

    truncation: Literal["left", "right", "drop", "error"] = "left"
    """What happens to a row longer than `model.max_length`: the left or right end of its input is cut,
    the row is left out of training, or it is an error. An answer is never cut; in a conversation, an earlier
    one of which a part is cut is not learned."""
    packing: bool = False
    """Whether training rows share sequences of `model.max_length` tokens without seeing each other
    (decoders); `per_device_train_batch_size` then counts sequences."""

    @property
    def answer(self) -> str:
        return "text"

    @property
    def writes(self) -> bool:
        return True

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        return packing_refusal(family) if self.packing else ""

    @abstractmethod
    def render(self, record: Record, tokenizer: PreTrainedTokenizerBase, family: str) -> Rendered:
        """What a model of the family reads and writes for a record."""

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        return Head(None, {})

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        from ftkit.training.writing import WritingHead

        return WritingHead(
            kind=cast("Kind", family),
            label_smoothing=label_smoothing,
            render=lambda record, tokenizer: self.render(record, tokenizer, family),
            read=_read,
            truncation=self.truncation,
            packing=self.packing,
            **self.template_options(),
        )

    @abstractmethod
    def example_inputs(self, family: str, *, pairs: bool) -> str:
        """A Python expression for what a model of the family reads, from `tokenizer`."""

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        family = writing_family(auto_class)
        return generation_lines(family, self.example_inputs(family, pairs=pairs), generation)

    def template_options(self) -> dict[str, Any]:
        """What the objective does with the tokenizer's chat template."""
        return {}

    def answer_json(self, value: Any, record: Record) -> Any:
        if value is None:
            return None
        return [value.text, *value.others] if value.others else value.text

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        return {"answer": cast("Writing", prediction.value).text}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        asked = " ".join(record.text.split())
        shown = asked if len(asked) <= _LONGEST_SHOWN else asked[: _LONGEST_SHOWN - 3] + "..."
        return f"{shown}\n  {cast('Writing', prediction.value).text}"


def packing_refusal(family: str) -> str:
    """Why rows of models of this family cannot share sequences; empty where they can."""
    if family == "decoder":
        return ""
    return "task.packing is for decoders: in an encoder the rows of a sequence see each other"


def _read(text: str, record: Record, known: Prediction) -> Prediction:
    """What the model wrote, with the loss of the right text where that is known."""
    return replace(known, value=replace(cast("Writing", known.value), text=text))


def right_texts(value: Any, field: str, where: str) -> Writing | None:
    """The right text of a row, or several; `None` where the data holds none.

    Raises:
        InputError: One of them is empty or no string.
    """
    if value is None or value == "" or value == []:
        return None
    texts = [text_of(one, field, where).strip() for one in (value if isinstance(value, list) else [value])]
    if not texts:
        raise InputError(f"the {field} is empty", where=where)
    return Writing(texts[0], tuple(texts[1:]))
