"""Text to text: summaries, translations, texts about data, answers to questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from ftkit.records import Record, Writing
from ftkit.tasks.as_text import checked_template, example_inputs, rendered
from ftkit.tasks.base import Field
from ftkit.tasks.reading import text_of
from ftkit.tasks.writing import WritingTask, right_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.questions import Questions
    from ftkit.training.writing import Rendered

_TEMPLATES = {"encoder_decoder": "{{ text }}", "decoder": "Input: {{ text }}\nOutput:"}
_PAIRED = {
    "encoder_decoder": "{{ text }}\n{{ text_pair }}",
    "decoder": "Input: {{ text }}\n{{ text_pair }}\nOutput:",
}


class Text2Text(WritingTask):
    """Write a text for a text: a summary, a translation, a sentence about data, an answer."""

    type: Literal["text2text"] = "text2text"
    template: str | None = None
    """Jinja that makes what the model reads from the fields `text` and `text_pair`; by default the text
    itself for an encoder-decoder, and `Input: ... Output:` for a decoder."""

    fields: ClassVar[Mapping[str, Field]] = {
        "text": Field(("text", "source", "document", "article", "input", "question", "data")),
        "text_pair": Field(("text_pair", "context"), required=False),
        "target": Field(("target", "summary", "highlights", "output", "answer", "translation", "references")),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("target",)

    @field_validator("template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        return checked_template(value)

    @property
    def default_metrics(self) -> list[str]:
        return ["rouge_l", "chrf", "exact_match", "answer_loss"]

    def example_inputs(self, family: str, *, pairs: bool) -> str:
        return example_inputs(self.template or (_PAIRED if pairs else _TEMPLATES)[family], pairs=pairs)

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        pair = values.get("text_pair")
        return Record(
            text=text_of(values.get("text"), "text", where),
            text_pair=None if "text_pair" not in values else text_of(pair, "text_pair", where),
            target=right_texts(values.get("target"), "target", where),
            where=where,
        )

    @property
    def asked_by(self) -> tuple[str, ...]:
        return ("generate",)

    prompt_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair")

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        from ftkit.questions import pair_fields, writing_questions

        template = "Input: {{ text }}\n{% if text_pair is defined %}{{ text_pair }}\n{% endif %}Output:"
        return writing_questions(self.template or template, pair_fields)

    def render(self, record: Record, tokenizer: PreTrainedTokenizerBase, family: str) -> Rendered:
        template = self.template or (_TEMPLATES if record.text_pair is None else _PAIRED)[family]
        answer = record.target.text if isinstance(record.target, Writing) else None
        return rendered(record, template, answer)
