"""The estimator that only prompts: nothing is trained, shots are chosen and the model is asked."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import InputError, UsageError
from ftkit.prompts.answering import Answerer, Generating, Ranking, longest_answer
from ftkit.prompts.causal import CausalRanker
from ftkit.prompts.chat import closing
from ftkit.prompts.cloze import ClozeRanker
from ftkit.prompts.prompting import Prompting
from ftkit.prompts.ranking import Ranker
from ftkit.prompts.seq2seq import Seq2SeqRanker
from ftkit.prompts.shots import NearestShots, SameShots, Shot, Shots, as_text, choose_shots, refuse_too_few
from ftkit.prompts.solver import Journal, Solver
from ftkit.records import Prediction, Record
from ftkit.training.generation import Writer, end_tokens, said
from ftkit.training.precision import resolve_precision
from ftkit.training.processes import processes
from ftkit.training.setup import Loaded, Scorer, Setup, Show, Workplace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("ftkit")

PROMPT = "prompt.json"
_BATCH = 32
_CALIBRATION_ROWS = 200
_RANKERS: dict[str, type[Ranker[Any]]] = {
    "AutoModelForMaskedLM": ClozeRanker,
    "AutoModelForSeq2SeqLM": Seq2SeqRanker,
}
"""How models rank that are not decoders, by the auto class that loads them."""


@dataclass(frozen=True)
class Plan:
    """A way to ask.

    Attributes:
        name: What tells it from the other ways of the same estimator; empty where it is the only one.
        prompting: How prompts are written.
        num_fewshot: How many shots.
        shots: How they are chosen: `fixed`, `random`, `balanced` or `nearest`.
        seed: Seed of that choice.
        encoder: With `nearest`, the model whose embeddings are compared; `None` for BM25.
        answer: `rank`, `generate` or `cloze`.
        normalization: See `Ranking`.
        calibration: See `Ranking`.
        constrained: Whether only candidates can be written.
        until: Texts that end what is written.
    """

    name: str
    prompting: Prompting
    num_fewshot: int
    shots: str
    seed: int
    encoder: str | None
    answer: str
    normalization: str
    calibration: str
    constrained: bool
    until: tuple[str, ...]


class PromptEstimator:
    """Chooses shots from the training records and asks the model as it is.

    Args:
        setup: The task on a language model.
        plans: The ways to ask; the first one answers, all of them are scored.
    """

    def __init__(self, setup: Setup, plans: Sequence[Plan]) -> None:
        self.setup = setup
        self.plans = tuple(plans)
        self.precision = resolve_precision(setup.precision)
        self.solvers: dict[str, Solver] = {}

    def prepare(
        self, train: Sequence[Record], validation: Sequence[Record], *, score: Scorer, workplace: Workplace
    ) -> None:
        """Load the model and choose the shots.

        Raises:
            InputError: The checkpoint has no language model head.
            UsageError: There are fewer training rows than shots, or the tokenizer has no chat template.
        """
        for plan in self.plans:
            refuse_too_few(train, plan.num_fewshot)
        for plan in self.plans:
            if plan.prompting.chat and not self._loaded.tokenizer.chat_template:
                raise UsageError(
                    "method.style: chat needs a chat template, which the tokenizer does not have",
                    where=f"model.name_or_path: {self._loaded.source}",
                    hint="take a chat model, or style: plain, or give task.chat_template (task: instruction)",
                )
            self.solvers[plan.name] = self._solver(plan, self._chosen(plan, train))
            if self._loaded.auto_class not in _RANKERS:
                _note_beginnings(plan)

    def fit(self, train: Sequence[Record], workplace: Workplace) -> dict[str, Any]:
        """Measure what calibration needs and save the shots; nothing is trained."""
        for number, (plan, solver) in enumerate(zip(self.plans, self.solvers.values(), strict=True)):
            name = f"answers-{number}-{processes().process_index}.jsonl"
            solver.journal = Journal(workplace.checkpoints / name)
            self._calibrate(plan, solver, train)
        if processes().is_main_process:
            workplace.model.mkdir(parents=True, exist_ok=True)
            saved = [self._saved(plan, self.solvers[plan.name]) for plan in self.plans]
            text = json.dumps(saved, indent=2, ensure_ascii=False)
            (workplace.model / PROMPT).write_text(text + "\n", encoding="utf-8")
        parameters = sum(p.numel() for p in self._loaded.model.parameters())
        shots = max(plan.num_fewshot for plan in self.plans)
        log.info(
            "  %s parameters, none of them trained; %s", f"{parameters:,}",
            "1 shot" if shots == 1 else f"{shots} shots",
        )  # fmt: skip
        return {
            "parameters": parameters,
            "trained_parameters": 0,
            "max_length": self._loaded.max_length,
            "shots": shots,
        }

    def load(self, folder: Path) -> None:
        """Take up the shots that an earlier `fit` saved.

        Raises:
            InputError: They cannot be read.
        """
        try:
            saved = json.loads((folder / PROMPT).read_text(encoding="utf-8"))
            for plan, state in zip(self.plans, saved, strict=True):
                shots = [Shot(**shot) for shot in state["shots"]]
                solver = self._solver(plan, shots)
                if isinstance(solver.answerer, Ranking):
                    solver.answerer.prior = state["prior"]
                self.solvers[plan.name] = solver
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the shots cannot be read: {error}", where=str(folder / PROMPT)) from None

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """The answer to each record, by the first way to ask."""
        return self.solvers[self.plans[0].name].predict(records)

    def explain(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The prompt of each record, the shots in it and why, and what the model said."""
        return self.solvers[self.plans[0].name].explain(records)

    def talk(self) -> Callable[[Record, Show], str]:
        """What gives the answer to one conversation after another, by the first way to ask."""
        return self.solvers[self.plans[0].name].answer

    def variants(self) -> Mapping[str, Callable[[Sequence[Record]], list[Prediction]]]:
        """The ways to ask, where there are several."""
        return {name: solver.predict for name, solver in self.solvers.items()} if len(self.plans) > 1 else {}

    @property
    def generation(self) -> dict[str, Any]:
        """How texts are written; empty where candidates are ranked."""
        plan = self.plans[0]
        answerer = self.solvers[plan.name].answerer
        if not isinstance(answerer, Generating):
            return {}
        options = {"until": list(plan.until), "constrained": plan.constrained}
        return {**said(answerer.writer.config), **options}

    def rendered(
        self, records: Sequence[Record], train: Sequence[Record], tokenizer: PreTrainedTokenizerBase
    ) -> list[dict[str, Any]]:
        """The prompts of records as each plan writes them, with all their shots and the answers that would be
        ranked, without a model.
        """
        found = []
        self._give_template(tokenizer)
        for plan in self.plans:
            questions = plan.prompting.questions
            refuse_too_few(train, plan.num_fewshot)
            shots = self._shots(plan, self._chosen(plan, train))
            chosen = shots.of([questions.fields(record) for record in records])
            for record, solved in zip(records, chosen, strict=True):
                prompt = plan.prompting.prompt(solved, record, tokenizer)
                candidates = questions.candidates(record) if questions.candidates else []
                found.append(
                    {
                        "prompt_name": plan.name,
                        "where": record.where,
                        "prompt": prompt.text,
                        "before_the_answer": prompt.lead,
                        "after_the_answer": prompt.after,
                        "answers": [candidate.text for candidate in candidates],
                    }
                )
        return found

    # Shots ------------------------------------------------------------------------------

    def _chosen(self, plan: Plan, train: Sequence[Record]) -> list[Shot]:
        """The shots of a plan; with `nearest`, all that can become one."""
        if not plan.num_fewshot:
            return []
        if plan.shots == "nearest":
            chosen = [(record, "") for record in train]
        else:
            chosen = choose_shots(train, plan.num_fewshot, how=plan.shots, seed=plan.seed)
        questions = plan.prompting.questions
        return [Shot(dict(questions.fields(record)), questions.write(record), why) for record, why in chosen]

    def _shots(self, plan: Plan, shots: Sequence[Shot]) -> Shots:
        if plan.shots != "nearest" or not shots:
            return SameShots(tuple(shots))
        from ftkit.prompts.retrieval import Bm25, Embeddings

        pool = [as_text(shot.fields) for shot in shots]
        if plan.encoder is None:
            return NearestShots(tuple(shots), plan.num_fewshot, Bm25(pool))
        assert self.setup.load_encoder is not None
        retriever = Embeddings(pool, self.setup.load_encoder(plan.encoder))
        return NearestShots(tuple(shots), plan.num_fewshot, retriever)

    def _saved(self, plan: Plan, solver: Solver) -> dict[str, Any]:
        shots = solver.shots
        every = shots.pool if isinstance(shots, NearestShots) else getattr(shots, "shots", ())
        prior = solver.answerer.prior if isinstance(solver.answerer, Ranking) else None
        listed = [{"fields": dict(shot.fields), "answer": shot.answer, "why": shot.why} for shot in every]
        return {"name": plan.name, "prior": prior, "shots": listed}

    # Asking -----------------------------------------------------------------------------

    def _solver(self, plan: Plan, shots: Sequence[Shot]) -> Solver:
        return Solver(
            self._answerer(plan),
            self._shots(plan, shots),
            number=plan.num_fewshot,
            max_length=self._loaded.max_length,
        )

    def _answerer(self, plan: Plan) -> Answerer:
        if plan.answer != "generate":
            return Ranking(
                plan.prompting,
                self._ranker,
                normalization=plan.normalization,
                calibration=plan.calibration,
            )
        tokenizer = self._loaded.tokenizer
        settings = dict(self.setup.generation)
        settings["max_new_tokens"] = longest_answer(plan.prompting, tokenizer, settings["max_new_tokens"])
        ends = end_tokens(self._loaded.model, tokenizer)
        if plan.prompting.chat:
            ends |= closing(tokenizer)
        writer = Writer(
            self._ranker.model,
            tokenizer,
            settings=settings,
            stop=sorted(ends) or None,
            precision=self.precision,
            until=plan.until,
            copied=False,
        )
        return Generating(
            plan.prompting,
            writer,
            self._ranker,
            max_new_tokens=settings["max_new_tokens"],
            max_length=self._loaded.max_length,
            batch=_BATCH,
            constrained=plan.constrained,
        )

    def _calibrate(self, plan: Plan, solver: Solver, train: Sequence[Record]) -> None:
        """With `calibration: batch`, the mean probabilities over training texts, answers not used."""
        if plan.calibration != "batch" or not isinstance(solver.answerer, Ranking):
            return
        if not train:
            raise InputError(
                "calibration: batch needs the texts of a training split", hint="give data.train_file"
            )
        generator = random.Random(plan.seed)
        looked = generator.sample(train, min(len(train), _CALIBRATION_ROWS))
        solver.answerer.prior = solver.mean_probabilities(looked)

    def _give_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The recipe's chat template instead of the tokenizer's, if it has one."""
        for plan in self.plans:
            if plan.prompting.questions.chat_template is not None:
                tokenizer.chat_template = plan.prompting.questions.chat_template

    @cached_property
    def _loaded(self) -> Loaded:
        loaded = self.setup.load(None)
        self._give_template(loaded.tokenizer)
        if loaded.new_parameters:
            raise InputError(
                "the checkpoint has no language model head (its weights would be random: "
                f"{', '.join(loaded.new_parameters[:3])})",
                where=loaded.source,
                hint="take a checkpoint that was trained as a language model",
            )
        return loaded

    @cached_property
    def _ranker(self) -> Ranker[Any]:
        loaded = self._loaded
        return _RANKERS.get(loaded.auto_class, CausalRanker)(
            loaded.model,
            loaded.tokenizer,
            device=processes().device,
            precision=self.precision,
        )


def _note_beginnings(plan: Plan) -> None:
    """Say which answers a decoder cannot choose because another one is their beginning."""
    questions = plan.prompting.questions
    if plan.answer != "rank" or plan.normalization != "none" or not (questions.same and questions.candidates):
        return
    texts = [candidate.text for candidate in questions.candidates(Record("?"))]
    begun = [(text, one) for text in texts for one in texts if text != one and text.startswith(one)]
    if begun:
        log.warning(
            "  note: %d answers begin with another one (%r with %r), which is always at least as likely; "
            "set method.normalization",
            len({text for text, _ in begun}), *begun[0],
        )  # fmt: skip
