"""Language modelling: pretraining on texts, or going on with it in another domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field as Limits
from pydantic import PositiveInt, model_validator

from ftkit.records import Prediction, Record, Writing
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of
from ftkit.tasks.writing import packing_refusal

if TYPE_CHECKING:
    from ftkit.training.heads import Objective
    from ftkit.training.language_head import Kind
    from ftkit.training.setup import Head


class LanguageModeling(Task):
    """Go on learning a language: causal for decoders, masked for encoders, span corruption for T5.

    A prediction is a text's loss, which tells how well the model knows such texts.
    """

    type: Literal["language_modeling"] = "language_modeling"
    documents: Literal["packed", "separate"] = "packed"
    """Whether documents are joined end to end and cut into blocks of `model.max_length`, or each is read
    by itself, in as many windows as it needs."""
    packing: bool = False
    """Whether documents that are read by themselves (`documents: separate`) share sequences of
    `model.max_length` tokens in training without seeing each other (decoders);
    `per_device_train_batch_size` then counts sequences."""
    stride: PositiveInt | None = None
    """In evaluation, how many tokens a window goes on; the rest is only read, so that each token has that
    much context. By default windows do not overlap. For decoders."""
    mlm_probability: Annotated[float, Limits(gt=0, lt=1)] = 0.15
    """Share of the tokens that are masked (encoders) or corrupted (encoder-decoders)."""
    mean_noise_span_length: Annotated[float, Limits(ge=1)] = 3.0
    """Mean length of a corrupted span in tokens (encoder-decoders)."""

    fields: ClassVar[Mapping[str, Field]] = {
        "text": Field(("text", "content", "document", "sentence")),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[str | None] = None

    @model_validator(mode="after")
    def _packs_what_is_apart(self) -> LanguageModeling:
        if self.packing and self.documents == "packed":
            raise ValueError(
                "packing keeps documents apart, documents: packed joins them; set documents: separate"
            )
        return self

    @property
    def answer(self) -> str:
        return "document"

    @property
    def default_metrics(self) -> list[str]:
        return ["perplexity"]

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        if family == "decoder":
            return ""
        if self.packing:
            return packing_refusal(family)
        if "bits_per_byte" in metrics:
            return "bits_per_byte needs a decoder: others predict only the tokens that are hidden from them"
        return "task.stride is for decoders" if self.stride else ""

    def answered_by(self, columns: Mapping[str, Any]) -> bool:
        return True

    def blank(self, values: Mapping[str, Any]) -> bool:
        """Text files have blank lines, which are no documents."""
        return not str(values.get("text") or "").strip()

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        text = text_of(values.get("text"), "text", where)
        return Record(text=text, target=Writing(text), where=where)

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        return Head(None, {})

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        from ftkit.training.documents import DocumentHead

        return DocumentHead(
            kind=cast("Kind", family),
            label_smoothing=label_smoothing,
            packing=self.packing,
            join=self.documents == "packed",
            stride=self.stride,
            noise=self.mlm_probability,
            mean_span=self.mean_noise_span_length,
        )

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        text = "..."
        if "MaskedLM" in auto_class:
            return [
                f'inputs = tokenizer("{text} " + tokenizer.mask_token + " {text}", return_tensors="pt")',
                'place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]',
                "print(tokenizer.decode(model(**inputs).logits[0, place].argmax()))",
            ]
        first = "<extra_id_0>" if "Seq2Seq" in auto_class else ""
        return [
            f'inputs = tokenizer("{text}{first}", return_tensors="pt")',
            'inputs.pop("token_type_ids", None)',
            "written = model.generate(**inputs, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id)[0]",
            "print(tokenizer.decode(written))",
        ]

    def answer_json(self, value: Any, record: Record) -> Any:
        if value is None or not value.tokens:
            return None
        return {"loss": round(value.loss, 4), "tokens": value.tokens}

    def apart(self) -> Task:
        return self.model_copy(update={"documents": "separate"})

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        value = cast("Writing", prediction.value)
        if not value.tokens:
            return {"tokens": 0}
        bits = value.loss / math.log(2)
        # Joined documents have their tokens foretold in each other's windows.
        alone = self.documents == "separate"
        return {
            "loss": round(value.loss / value.tokens, 6),
            "tokens": value.tokens,
            "perplexity": round(math.exp(min(value.loss / value.tokens, 700)), 4),
            **({"bits_per_byte": round(bits / value.octets, 6)} if value.octets and alone else {}),
        }

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        found = self.prediction_json(prediction, record)
        return f"perplexity {found.get('perplexity', 'unknown')}  {record.text}"
