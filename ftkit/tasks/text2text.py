"""Text to text: summaries, translations, texts about data, answers to questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from ftkit.errors import InputError
from ftkit.records import Record, Writing
from ftkit.tasks.base import Field
from ftkit.tasks.reading import text_of
from ftkit.tasks.writing import WritingTask, right_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.training.writing import Rendered

_INPUTS = {"text", "text_pair"}
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
        from ftkit.prompts.template import Template

        if value is None:
            return value
        fields = Template(value).fields
        if unknown := sorted(fields - _INPUTS):
            raise ValueError(f"the template names {unknown[0]!r}; the fields are: text, text_pair")
        if "text" not in fields:
            raise ValueError("the template does not name the field text")
        return value

    @property
    def default_metrics(self) -> list[str]:
        return ["rouge_l", "chrf", "exact_match", "answer_loss"]

    def example_inputs(self, family: str) -> str:
        prompt = (self.template or _TEMPLATES[family]).replace("{{ text }}", "...")
        return f'tokenizer({json.dumps(prompt, ensure_ascii=False)}, return_tensors="pt")'

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        pair = values.get("text_pair")
        return Record(
            text=text_of(values.get("text"), "text", where),
            text_pair=None if "text_pair" not in values else text_of(pair, "text_pair", where),
            target=right_texts(values.get("target"), "target", where),
            where=where,
        )

    def render(self, record: Record, tokenizer: PreTrainedTokenizerBase, family: str) -> Rendered:
        from ftkit.prompts.template import Template
        from ftkit.training.writing import Rendered

        source = self.template or (_TEMPLATES if record.text_pair is None else _PAIRED)[family]
        fields = {"text": record.text}
        if record.text_pair is not None:
            fields["text_pair"] = record.text_pair
        try:
            prompt = Template(source).render(fields)
        except ValueError as error:
            raise InputError(str(error), where=record.where, hint="task.template") from None
        start = prompt.find(record.text)
        cut = (start, start + len(record.text)) if start >= 0 else (0, len(prompt))
        if not isinstance(record.target, Writing):
            return Rendered(prompt, (), cut)
        # Most tokenizers keep a space with the word after it, so it belongs to the answer.
        text = f"{prompt} {record.target.text}"
        return Rendered(text, ((len(prompt), len(text)),), cut)
