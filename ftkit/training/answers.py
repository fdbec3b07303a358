"""The answers that a fine-tuned model writes: prompts within its room, and one writer for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftkit.errors import InputError
from ftkit.records import Prediction, Record
from ftkit.training.generation import NO_RULES, Writer, end_tokens, generation_config, said
from ftkit.training.positions import longest_prompt
from ftkit.training.setup import Show
from ftkit.training.writing import WritingHead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")


class Answers:
    """What a model writes, which is made to stop where answers end, also where others load it.

    Args:
        model: With its language model head.
        tokenizer: Complete: with its chat template.
        head: Makes prompts of records, and reads what is written.
        settings: How texts are written, by the names of transformers' `GenerationConfig`.
        precision: `fp32`, `bf16` or `fp16`.
        max_length: The longest input in tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        head: WritingHead,
        *,
        settings: Mapping[str, Any],
        precision: str,
        max_length: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.head = head
        self.settings = settings
        self.precision = precision
        self.max_length = max_length
        self._writer: Writer | None = None
        ends = end_tokens(model, tokenizer) | head.closing(tokenizer)
        model.generation_config.eos_token_id = sorted(ends) or None
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        for name in NO_RULES.keys() & settings.keys():
            setattr(model.generation_config, name, settings[name])
        _leave_out_unused(model.generation_config)

    @property
    def stop(self) -> Any:
        """The tokens after which nothing more is written."""
        return self.model.generation_config.eos_token_id

    def generation(self) -> dict[str, Any]:
        """How texts are written, whatever the recipe or the model says of it."""
        return said(generation_config(self.model, self.tokenizer, self.settings, self.stop))

    def room(self) -> int:
        """The longest prompt: a decoder needs positions for what it writes.

        Raises:
            UsageError: There is hardly any left.
        """
        config = self.model.config
        new_tokens = int(self.settings["max_new_tokens"])
        left = longest_prompt(config.to_dict(), new_tokens, apart=config.is_encoder_decoder)
        return self.max_length if left is None else min(self.max_length, left)

    def prompts(self, records: Sequence[Record]) -> list[list[int] | None]:
        """Token ids of what the model reads before it writes the answer to each record; `None` where that
        does not fit.
        """
        return self.head.prompts(records, self.tokenizer, self.room())

    def refuse_long(self, records: Sequence[Record]) -> None:
        """Refuse records that are too long where that is an error, before they are to be answered.

        Raises:
            InputError: One is.
        """
        if self.head.truncation == "error":
            self.prompts(records)

    def written(
        self, records: Sequence[Record], predictions: Sequence[Prediction], batch: int
    ) -> list[Prediction]:
        """The same predictions with the texts that the model writes, so many prompts at once."""
        prompts = self.prompts(records)
        fitting = {row: prompt for row, prompt in enumerate(prompts) if prompt is not None}
        if len(fitting) < len(prompts):
            first = records[prompts.index(None)].where
            log.warning(
                "  note: %d of %d rows do not fit within %d tokens, whatever is left out of them: their "
                "answers are empty%s", len(prompts) - len(fitting), len(prompts), self.room(),
                f" (first: {first})" if first else "",
            )  # fmt: skip
        texts = [""] * len(prompts)
        for row, text in zip(fitting, self.writer().write(list(fitting.values()), batch), strict=True):
            texts[row] = text
        together = zip(texts, records, predictions, strict=True)
        return [self.head.read(text, record, prediction) for text, record, prediction in together]

    def talk(self) -> Callable[[Record, Show], str]:
        """What gives the answer to one conversation after another."""
        # Of a conversation that goes on, the beginning is left out, whatever was cut in training.
        writer, head = self.writer(), replace(self.head, truncation="left")

        def answer(record: Record, show: Show) -> str:
            (prompt,) = head.prompts([record], self.tokenizer, self.room())
            if prompt is None:
                raise InputError(
                    f"this is more than the {self.room()} tokens there is room for", where=record.where
                )
            return writer.stream(prompt, show)

        return answer

    def writer(self) -> Writer:
        """What writes texts with the model as it is; kept, since it may have a copy in another precision.

        The model itself keeps its weights: losses are computed as in training, so that a finished run has the
        scores that it had.
        """
        if self._writer is None:
            self._writer = Writer(
                self.model, self.tokenizer, settings=self.settings, stop=self.stop, precision=self.precision
            )
        return self._writer

    def learned(self) -> None:
        """The model has other weights from here on."""
        self._writer = None


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")


def _leave_out_unused(config: Any) -> None:
    """A published configuration may say how it would sample without asking for it. As it is, transformers
    only warns of that; with another end token it refuses to save it.
    """
    unused = [*_SAMPLING] if config.do_sample is not True else []
    unused += _BEAMS if (config.num_beams or 1) == 1 else ()
    unused += config.extra_output_flags if config.return_dict_in_generate is not True else ()
    for name in unused:
        if getattr(config, name, None) is not None:
            setattr(config, name, None)
