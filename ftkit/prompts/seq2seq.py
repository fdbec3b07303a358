"""Ranking with an encoder-decoder: the encoder reads the prompt once, the decoder says each answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutput

from ftkit.errors import InputError
from ftkit.prompts.prompting import Prompt
from ftkit.prompts.ranking import MOST_LOGITS, Ranked, Ranker, in_batches

_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Seq2SeqRow:
    """Token ids of what the encoder reads, and of each answer with its end token."""

    source: list[int]
    answers: list[list[int]]


class Seq2SeqRanker(Ranker[Seq2SeqRow]):
    """Scores answers as what the decoder writes, the end token included: an answer is all that it says."""

    def row(self, prompt: Prompt, answers: Sequence[str]) -> Seq2SeqRow:
        read, _ = prompt.read_and_written()
        source = self.tokenizer(read, add_special_tokens=prompt.special, truncation=False, verbose=False)[
            "input_ids"
        ]
        end = self.tokenizer.eos_token_id
        targets = []
        for answer in answers:
            ids = list(self.tokenizer(text_target=answer, truncation=False, verbose=False)["input_ids"])
            ids = ids if end is None or ids[-1:] == [end] else [*ids, end]
            if all(token in self.tokenizer.all_special_ids for token in ids):
                raise InputError(f"the answer {answer!r} has no token of its own")
            targets.append(ids)
        return Seq2SeqRow(list(source), targets)

    def longest(self, row: Seq2SeqRow) -> int:
        return max(len(row.source), *map(len, row.answers))

    def scores(self, rows: Sequence[Seq2SeqRow], keys: Sequence[Hashable]) -> list[list[Ranked]]:
        vocabulary = self.model.config.get_text_config().vocab_size
        found: dict[int, list[Ranked]] = {}
        for batch in in_batches([len(row.source) for row in rows], _BATCH_TOKENS):
            sources = [rows[place].source for place in batch]
            mask = self.tensor([[1] * len(source) for source in sources], 0)
            with torch.inference_mode():
                read = self.model.get_encoder()(
                    input_ids=self.tensor(sources, self.tokenizer.pad_token_id), attention_mask=mask
                )["last_hidden_state"]
            for number, place in enumerate(batch):
                row = rows[place]
                most = max(1, MOST_LOGITS // (max(map(len, row.answers)) * vocabulary))
                found[place] = [
                    ranked
                    for start in range(0, len(row.answers), most)
                    for ranked in self._say(
                        row.answers[start : start + most], read[number, None], mask[number, None]
                    )
                ]
        return [found[place] for place in range(len(rows))]

    def _say(self, answers: Sequence[list[int]], read: torch.Tensor, mask: torch.Tensor) -> list[Ranked]:
        """The scores of answers to what was read, shape (1, tokens, hidden size)."""
        count = len(answers)
        labels = self.tensor(answers, 0)
        known = self.tensor([[1.0] * len(answer) for answer in answers], 0)
        first = torch.full((count, 1), self.model.config.decoder_start_token_id, device=self.device)
        with torch.inference_mode():
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=read.expand(count, -1, -1)),
                attention_mask=mask.expand(count, -1),
                decoder_input_ids=torch.cat([first, labels[:, :-1]], dim=1),
                use_cache=False,
            )["logits"].float()
        each = logits.gather(2, labels[..., None]).squeeze(2) - logits.logsumexp(dim=2)
        sums = (each * known).sum(dim=1).tolist()
        return [Ranked(value, len(answer)) for value, answer in zip(sums, answers, strict=True)]
