"""Stand-ins for the data of the shipped recipes.

Layout, splits, columns, types and label names are those of the Hub, as the data set's card gives them
(https://huggingface.co/datasets/ID); the rows are made up here. A recipe for the reader's own files is
known by the name of its first one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Features, List, Sequence, Value
from hub_layout import Rows, write, write_converted, write_files


@dataclass(frozen=True)
class StandIn:
    """What a test needs to know of a data set.

    Attributes:
        write: Writes the stand-in to a folder.
        labels: The label names in the order that the data set declares; none where the answer is a text.
        scored: The split a run is scored on.
        sizes: Rows of each split as ftkit sees them, fractions cut off.
        notes: What ftkit says of the rows; `{folder}` stands for the folder of the stand-in.
        reads: What a recipe's `data` block names, by key: the folder, or files in it.
        problem_type: What transformers calls the problem; it has no name for tagged words and for texts.
    """

    write: Callable[[Path], None]
    labels: tuple[str, ...]
    scored: str
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()
    reads: Mapping[str, str] = field(default_factory=lambda: {"dataset_name": "."})
    problem_type: str | None = "single_label_classification"

    def settings(self, folder: Path) -> list[str]:
        """What to `--set` so that a recipe reads the stand-in in `folder`."""
        return [f"data.{key}={folder / name}" for key, name in self.reads.items()]


SENTIMENTS = ("negative", "positive")


def write_sst2(folder: Path) -> None:
    """stanfordnlp/sst2: the labels of test are withheld and stand there as -1."""
    features = Features(
        idx=Value("int32"), sentence=Value("string"), label=ClassLabel(names=list(SENTIMENTS))
    )

    def rows(count: int, first: int, *, labelled: bool = True) -> Rows:
        # Positive first, so that the order of the rows is not that of the labels.
        numbers = [(1 - row) % 2 for row in range(count)]
        words = ("dull", "bad", "flat", "slow"), ("good", "warm", "bright", "funny")
        return {
            "idx": list(range(count)),
            "sentence": [
                f"{words[n][row // 2 % 4]} film no. {first + row} " for row, n in enumerate(numbers)
            ],
            "label": numbers if labelled else [-1] * count,
        }

    splits = {"train": rows(40, 0), "validation": rows(12, 40), "test": rows(10, 52, labelled=False)}
    write(folder, features, splits)


TOPICS = ("World", "Sports", "Business", "Sci/Tech")


def write_ag_news(folder: Path) -> None:
    """fancyzhx/ag_news: train and test only."""
    features = Features(text=Value("string"), label=ClassLabel(names=list(TOPICS)))
    subjects = ("The embassy", "The home team", "The market", "A new phone")

    def rows(count: int, first: int) -> Rows:
        numbers = [3 - row % 4 for row in range(count)]
        return {
            "text": [f"{subjects[n]} made news on day {first + row}" for row, n in enumerate(numbers)],
            "label": numbers,
        }

    write(folder, features, {"train": rows(60, 0), "test": rows(16, 60)})


_INTENTS = """
activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up
balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit
beneficiary_not_allowed cancel_transfer card_about_to_expire card_acceptance card_arrival
card_delivery_estimate card_linking card_not_working card_payment_fee_charged
card_payment_not_recognised card_payment_wrong_exchange_rate card_swallowed cash_withdrawal_charge
cash_withdrawal_not_recognised change_pin compromised_card contactless_not_working country_support
declined_card_payment declined_cash_withdrawal declined_transfer direct_debit_payment_not_recognised
disposable_card_limits edit_personal_details exchange_charge exchange_rate exchange_via_app
extra_charge_on_statement failed_transfer fiat_currency_support get_disposable_virtual_card
get_physical_card getting_spare_card getting_virtual_card lost_or_stolen_card lost_or_stolen_phone
order_physical_card passcode_forgotten pending_card_payment pending_cash_withdrawal pending_top_up
pending_transfer pin_blocked receiving_money Refund_not_showing_up request_refund
reverted_card_payment? supported_cards_and_currencies terminate_account
top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed
top_up_limits top_up_reverted topping_up_by_card transaction_charged_twice transfer_fee_charged
transfer_into_account transfer_not_received_by_recipient transfer_timing unable_to_verify_identity
verify_my_identity verify_source_of_funds verify_top_up virtual_card_not_working visa_or_mastercard
why_verify_identity wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal
"""
INTENTS = tuple(_INTENTS.split())


def write_banking77(folder: Path) -> None:
    """legacy-datasets/banking77: train and test only, two of the 77 names in unusual spelling."""
    features = Features(text=Value("string"), label=ClassLabel(names=list(INTENTS)))

    def rows(openings: tuple[str, ...]) -> Rows:
        pairs = [(opening, n) for opening in openings for n in reversed(range(len(INTENTS)))]
        return {
            "text": [f"{opening} {INTENTS[n].replace('_', ' ').lower()}" for opening, n in pairs],
            "label": [n for _, n in pairs],
        }

    write(folder, features, {"train": rows(("Please help with", "Question on")), "test": rows(("About",))})


_EMOTIONS = """
admiration amusement anger annoyance approval caring confusion curiosity desire disappointment
disapproval disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride
realization relief remorse sadness surprise neutral
"""
EMOTIONS = tuple(_EMOTIONS.split())


def write_go_emotions(folder: Path) -> None:
    """google-research-datasets/go_emotions: several labels a row in `simplified`, raters' votes in `raw`."""
    features = Features(
        text=Value("string"), labels=Sequence(ClassLabel(names=list(EMOTIONS))), id=Value("string")
    )

    def rows(count: int, first: int) -> Rows:
        # One to three labels a row; every label occurs in the first 28 rows.
        sets = [sorted({(27 - row) % 28, *range(20, 20 + row % 3)}) for row in range(count)]
        return {
            "text": [
                f"Day {first + row}: {' and '.join(EMOTIONS[n] for n in numbers)}"
                for row, numbers in enumerate(sets)
            ],
            "labels": sets,
            "id": [f"e{first + row:05}" for row in range(count)],
        }

    splits = {"train": rows(42, 0), "validation": rows(14, 42), "test": rows(14, 56)}
    write(folder, features, splits, "simplified")

    texts = ("text", "id", "author", "subreddit", "link_id", "parent_id")
    votes = Features(
        dict.fromkeys(texts, Value("string"))
        | {"created_utc": Value("float32"), "rater_id": Value("int32"), "example_very_unclear": Value("bool")}
        | dict.fromkeys(EMOTIONS, Value("int32"))
    )
    one = {column: ["x"] for column in texts} | {"created_utc": [0.0], "rater_id": [1]}
    one |= {"example_very_unclear": [False]} | {emotion: [int(emotion == "joy")] for emotion in EMOTIONS}
    write(folder, votes, {"train": one}, "raw")


JUDGEMENTS = ("not_equivalent", "equivalent")


def write_glue(folder: Path) -> None:
    """nyu-mll/glue: `mrpc` has labels in test too; the numbers of `stsb` stand there as -1."""
    pair = Features(
        sentence1=Value("string"),
        sentence2=Value("string"),
        label=ClassLabel(names=list(JUDGEMENTS)),
        idx=Value("int32"),
    )

    def rows(count: int, first: int) -> Rows:
        numbers = [(1 - row) % 2 for row in range(count)]
        days = [first + row for row in range(count)]
        return {
            "sentence1": [f"The firm sold {day} cars on Monday." for day in days],
            "sentence2": [
                f"On Monday {day} cars were sold by the firm." if n else f"The firm has {day} offices."
                for day, n in zip(days, numbers, strict=True)
            ],
            "label": numbers,
            "idx": days,
        }

    write(folder, pair, {"train": rows(40, 0), "validation": rows(12, 40), "test": rows(14, 52)}, "mrpc")

    number = Features(
        sentence1=Value("string"), sentence2=Value("string"), label=Value("float32"), idx=Value("int32")
    )

    def scored(count: int, first: int, *, known: bool = True) -> Rows:
        days = [first + row for row in range(count)]
        return {
            "sentence1": [f"A man is playing tune {day}." for day in days],
            "sentence2": [("A man plays it.", "A dog runs.", "Someone plays.")[day % 3] for day in days],
            "label": [(4.8, 0.0, 3.25)[day % 3] if known else -1.0 for day in days],
            "idx": days,
        }

    splits = {"train": scored(40, 0), "validation": scored(12, 40), "test": scored(14, 52, known=False)}
    write(folder, number, splits, "stsb")


ENTITIES = {
    "corporation": "Acme Motors",
    "creative-work": "The Red Door",
    "group": "Night Owls",
    "location": "Port Royal",
    "person": "Ann Lee",
    "product": "Zoom 5",
}
DISEASES = {"Disease": "spotted fever"}


def tagged(*parts: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Words and their BIO tags from texts and their types; an empty type is no entity."""
    words, tags = [], []
    for text, kind in parts:
        for number, word in enumerate(text.split()):
            words.append(word)
            tags.append(f"{'I' if number else 'B'}-{kind}" if kind else "O")
    return words, tags


def _write_tagged(folder: Path, config: str, names: Mapping[str, str]) -> None:
    """A set of `tokens` and `ner_tags`: the first row has no entity, the second is long."""
    tags = ["O", *(f"{prefix}-{kind}" for kind in names for prefix in "BI")]
    features = Features(
        id=Value("string"), tokens=Sequence(Value("string")), ner_tags=Sequence(ClassLabel(names=tags))
    )
    # Last one first, so that the order of the rows is not that of the labels.
    entities = [(name, kind) for kind, name in reversed(names.items())]

    def rows(count: int, first: int) -> Rows:
        cycle = itertools.cycle(entities)
        found = [
            tagged((f"nothing to see on day {first}", "")),
            tagged((f"{'on and ' * 40} on day {first} to", ""), next(cycle), ("again", "")),
            # Two entities side by side and a third one at the end.
            *(
                tagged((f"Day {day} :", ""), next(cycle), next(cycle), ("saw", ""), next(cycle))
                for day in range(first, first + count - 2)
            ),
        ]
        return {
            "id": [str(number) for number in range(count)],
            "tokens": [words for words, _ in found],
            "ner_tags": [word_tags for _, word_tags in found],
        }

    splits = {"train": rows(40, 0), "validation": rows(12, 40), "test": rows(14, 52)}
    write_converted(folder, features, splits, config)


def write_wnut_17(folder: Path) -> None:
    """leondz/wnut_17: the Parquet copy of what its script makes."""
    _write_tagged(folder, "wnut_17", ENTITIES)


def write_ncbi_disease(folder: Path) -> None:
    """ncbi/ncbi_disease: as well."""
    _write_tagged(folder, "ncbi_disease", DISEASES)


PLACES = ("LOC", "ORG", "PER")


def write_conll(folder: Path) -> None:
    """A reader's own files: four columns, two with Windows' line ends, two with tabs."""

    def sentences(count: int, first: int) -> list[list[tuple[str, str]]]:
        found = [tagged((f"Day {first} was quiet .", ""))]
        for day in range(first, first + count - 1):
            found.append(tagged((f"Day {day} :", ""), ("Ann Lee", "PER"), ("left", ""), ("Rome", "LOC"),
                                ("for", ""), ("Acme Motors", "ORG")))  # fmt: skip
        return [list(zip(words, tags, strict=True)) for words, tags in found]

    def text(sentences: list[list[tuple[str, str]]], line: str) -> str:
        return "\n\n".join(
            "\n".join(line.format(word=word, tag=tag) for word, tag in sentence) for sentence in sentences
        )

    folder.mkdir(parents=True)
    train = text(sentences(20, 0), "{word} NN I-NP {tag}")
    (folder / "train.conll").write_text(f"-DOCSTART- -X- -X- O\n\n{train}\n\n")
    # The last line is not ended.
    (folder / "dev.conll").write_text(text(sentences(6, 20), "{word} {tag}"), newline="\r\n")
    (folder / "test.conll").write_text(text(sentences(8, 26), "{word}\t{tag}") + "\n")


# Texts that a model writes -------------------------------------------------------------------------

_SPLITS = {"train": (24, 0), "validation": (6, 24), "test": (8, 30)}


def _strings(*names: str) -> Features:
    return Features(dict.fromkeys(names, Value("string")))


def _columns(rows: list[dict[str, Any]]) -> Rows:
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_multi30k(folder: Path) -> None:
    """bentrevett/multi30k: a file of JSON lines for each split, validation called `val`."""
    colours = {"red": "roten", "green": "grünen", "blue": "blauen"}

    def rows(count: int, first: int) -> list[dict[str, str]]:
        return [
            {
                "en": f"{day} dogs on a {english} sofa.",
                "de": f"{day} Hunde auf einem {german} Sofa.",
            }
            for day, (english, german) in zip(
                range(first, first + count), itertools.cycle(colours.items()), strict=False
            )
        ]

    names = {"train": "train", "validation": "val", "test": "test"}
    write_files(folder, {f"{names[split]}.jsonl": rows(*which) for split, which in _SPLITS.items()})


def write_fairytale_qa(folder: Path) -> None:
    """WorkInTheDark/FairytaleQA: the Parquet copy; the second answer is empty in train."""
    asked = ("question", "answer1", "answer2", "local-or-sum", "attribute", "ex-or-im", "ex-or-im2")
    features = _strings("story_name", "story_section", *asked)

    def rows(split: str, count: int, first: int) -> Rows:
        kings = range(first, first + count)
        more = "and so on . " * 30
        found = [
            {
                "story_name": f"king-{king}",
                # The second passage of each split is too long.
                "story_section": f"king {king} had {king} sons . " + more * (king == first + 1),
                "question": f"how many sons had king {king} ?",
                "answer1": f"{king} .",
                "answer2": "" if split == "train" else f"{king} sons .",
                "local-or-sum": "local",
                "attribute": "character",
                "ex-or-im": "explicit",
                "ex-or-im2": "" if split == "train" else "explicit",
            }
            for king in kings
        ]
        return _columns(found)

    splits = {split: rows(split, *which) for split, which in _SPLITS.items()}
    write_converted(folder, features, splits, "plain_text")


def write_nq_open(folder: Path) -> None:
    """google-research-datasets/nq_open: several answers a row; train and validation only."""
    features = Features(question=Value("string"), answer=Sequence(Value("string")))

    def rows(count: int, first: int) -> Rows:
        numbers = range(first, first + count)
        return {
            "question": [f"who won cup number {number}" for number in numbers],
            "answer": [[f"team {number}", f"the team {number}"][: 1 + number % 2] for number in numbers],
        }

    write(folder, features, {"train": rows(40, 0), "validation": rows(8, 40)}, "nq_open")


def write_dialogsum(folder: Path) -> None:
    """knkarthick/dialogsum: csv files whose cells have line ends; in test each dialogue stands thrice."""

    def rows(count: int, first: int, summaries: int = 1) -> list[dict[str, str]]:
        return [
            {
                "id": f"day_{day}_{number}",
                "dialogue": f"#Person1#: Is it day {day}?\n#Person2#: It is.",
                "summary": f"#Person2# says, it is day {day}{'.' * number}",
                "topic": "the day",
            }
            for day in range(first, first + count)
            for number in range(1, summaries + 1)
        ]

    train = rows(24, 0)
    train[1]["dialogue"] += "\n#Person1#: Really?\n#Person2#: Really." * 10
    write_files(
        folder, {"train.csv": train, "validation.csv": rows(6, 24), "test.csv": rows(4, 30, summaries=3)}
    )


def write_cnn_dailymail(folder: Path) -> None:
    """abisee/cnn_dailymail: a configuration for each version; in `highlights`, a sentence a line."""
    features = _strings("article", "highlights", "id")

    def rows(count: int, first: int) -> Rows:
        days = range(first, first + count)
        return {
            "article": [f"LONDON (CNN) -- Rain on day {day}. {'More later. ' * (day % 24)}" for day in days],
            "highlights": [f"Rain on day {day} .\nMore of it to come ." for day in days],
            "id": [f"{day:040x}" for day in days],
        }

    splits = {split: rows(*which) for split, which in _SPLITS.items()}
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        write(folder, features, splits, version)


def write_e2e_nlg(folder: Path) -> None:
    """tuetschek/e2e_nlg: the Parquet copy; a record has a row for each of its texts."""
    features = _strings("meaning_representation", "human_reference")

    def rows(count: int, first: int) -> Rows:
        numbers = range(first, first + count)
        texts = "Inn {} is in the riverside area.", "By the river is Inn {}."
        return {
            "meaning_representation": [f"name[Inn {number // 2}], area[riverside]" for number in numbers],
            "human_reference": [texts[number % 2].format(number // 2) for number in numbers],
        }

    splits = {split: rows(*which) for split, which in _SPLITS.items()}
    write_converted(folder, features, splits, "default")


def write_alpaca(folder: Path) -> None:
    """yahma/alpaca-cleaned: one JSON list; two rows in three have an empty input."""
    rows = [
        {
            "instruction": f"Write the number {number} in digits.",
            "input": "" if number % 3 else "No words, please.",
            "output": str(number),
        }
        for number in range(60)
    ]
    write_files(folder, {"alpaca_data_cleaned.json": rows})


def write_dolly(folder: Path) -> None:
    """databricks/databricks-dolly-15k: JSON lines; two rows in three have an empty context."""
    rows = [
        {
            "instruction": f"Which number is {number}?",
            "context": "" if number % 3 else f"{number} is a number. " * (1 + number),
            "response": f"It is {number}.",
            "category": "open_qa" if number % 3 else "closed_qa",
        }
        for number in range(60)
    ]
    write_files(folder, {"databricks-dolly-15k.jsonl": rows})


def _chats(count: int, first: int) -> Iterator[list[dict[str, str]]]:
    """A question and its answer; every third conversation goes on, and begins with a system prompt."""
    for day in range(first, first + count):
        turns = [("user", f"Which day is it? {day}"), ("assistant", f"Day {day}.")]
        if day % 3 == 0:
            turns = [("system", "Be short."), *turns, ("user", "Sure?"), ("assistant", "Yes.")]
        yield [{"content": content, "role": role} for role, content in turns]


_MESSAGES = List({"content": Value("string"), "role": Value("string")})


def write_no_robots(folder: Path) -> None:
    """HuggingFaceH4/no_robots: the first question stands in `prompt` too; train and test only."""
    features = Features(
        prompt=Value("string"), prompt_id=Value("string"), messages=_MESSAGES, category=Value("string")
    )

    def rows(count: int, first: int) -> Rows:
        found = [
            {
                "prompt": next(turn["content"] for turn in chat if turn["role"] == "user"),
                "prompt_id": f"{first + number:064x}",
                "messages": chat,
                "category": "Chat" if len(chat) > 2 else "Open QA",
            }
            for number, chat in enumerate(_chats(count, first))
        ]
        return _columns(found)

    write(folder, features, {"train": rows(40, 0), "test": rows(8, 40)})


def write_smol_smoltalk(folder: Path) -> None:
    """HuggingFaceTB/smol-smoltalk: train and test only."""
    features = Features(messages=_MESSAGES, source=Value("string"))

    def rows(count: int, first: int) -> Rows:
        return {"messages": list(_chats(count, first)), "source": ["everyday-conversations"] * count}

    write(folder, features, {"train": rows(100, 0), "test": rows(8, 100)})


def write_squad(folder: Path) -> None:
    """rajpurkar/squad: the same article for several questions; train and validation only."""
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    features = Features(
        id=Value("string"), title=Value("string"), context=Value("string"), question=Value("string"),
        answers=answers,
    )  # fmt: skip

    def rows(split: str, count: int, first: int) -> Rows:
        found = []
        for number in range(first, first + count):
            # The second article of each split needs several windows.
            context = "Rain fell. " * (20 * (number == first + 1)) + f"Day {number} was quiet."
            answer = f"Day {number}"
            # In validation three people have answered.
            times = 1 if split == "train" else 3
            found.append({
                "id": f"{number:024x}", "title": "Days", "context": context,
                "question": "Which day was quiet?",
                "answers": {"text": [answer] * times, "answer_start": [context.find(answer)] * times},
            })  # fmt: skip
        return _columns(found)

    splits = {"train": rows("train", 40, 0), "validation": rows("validation", 8, 40)}
    write(folder, features, splits, "plain_text")


def _science(count: int, first: int) -> Rows:
    found = []
    for number in range(first, first + count):
        texts = [f"the {word} no. {number}" for word in ("sun", "moon", "rain", "wind")]
        # Some questions have numbers for letters, and some have fewer choices.
        names = ["A", "B", "C", "D"] if number % 5 else ["1", "2", "3", "4"]
        kept = 3 if number % 7 == 3 else 4
        found.append({
            "id": f"science_{number}", "question": f"Which of these is no. {number}?",
            "choices": {"text": texts[:kept], "label": names[:kept]}, "answerKey": names[number % kept],
        })  # fmt: skip
    return _columns(found)


def write_arc_easy(folder: Path) -> None:
    """allenai/ai2_arc, configuration ARC-Easy: choices as two lists, the answer by its label."""
    choices = {"text": List(Value("string")), "label": List(Value("string"))}
    features = Features(
        id=Value("string"), question=Value("string"), choices=choices, answerKey=Value("string")
    )
    splits = {"train": _science(24, 0), "validation": _science(6, 24), "test": _science(8, 30)}
    write(folder, features, splits, "ARC-Easy")


def write_openbookqa(folder: Path) -> None:
    """allenai/openbookqa, configuration main: as ARC, with another name for the question."""
    choices = {"text": List(Value("string")), "label": List(Value("string"))}
    features = Features(
        id=Value("string"), question_stem=Value("string"), choices=choices, answerKey=Value("string")
    )

    def rows(count: int, first: int) -> Rows:
        columns = _science(count, first)
        columns["question_stem"] = columns.pop("question")
        return columns

    splits = {"train": rows(24, 0), "validation": rows(6, 24), "test": rows(8, 30)}
    write(folder, features, splits, "main")


def write_wikitext(folder: Path) -> None:
    """Salesforce/wikitext: a row is a line with its end and a space before it, or blank as the first one.

    The words of the configurations that are not raw are split and rare ones replaced.
    """
    features = _strings("text")

    def lines(articles: int, first: int) -> list[str]:
        found = []
        for day in range(first, first + articles):
            found += ["", f" = Day {day} = \n", "", f" Rain fell on day {day} , and on the day after it . \n"]
        return found

    for config in ("wikitext-2-raw-v1", "wikitext-2-v1"):
        splits = {split: {"text": lines(*which)} for split, which in _ARTICLES.items()}
        write(folder, features, splits, config)


# Articles of each split, and the number of the first one.
_ARTICLES = {"train": (12, 0), "validation": (3, 12), "test": (4, 15)}


def _text_standin(write: Callable[[Path], None], *notes: str, **sizes: int) -> StandIn:
    """Of texts that a model writes."""
    return StandIn(write, (), "test", sizes, notes=notes, problem_type=None)


def _tagged_standin(
    write: Callable[[Path], None], labels: tuple[str, ...], sizes: dict[str, int], **others: Any
) -> StandIn:
    """Of tagged words: one row of each split has no entity."""
    notes = tuple(f"{split}: 1 of {rows} rows hold no entity" for split, rows in sizes.items())
    return StandIn(write, labels, "test", sizes, notes=notes, problem_type=None, **others)


STANDINS = {
    "stanfordnlp/sst2": StandIn(
        write_sst2,
        SENTIMENTS,
        "test",
        {"train": 39, "validation": 1, "test": 12},
    ),
    "fancyzhx/ag_news": StandIn(write_ag_news, TOPICS, "test", {"train": 57, "validation": 3, "test": 16}),
    "legacy-datasets/banking77": StandIn(
        write_banking77, INTENTS, "test", {"train": 139, "validation": 15, "test": 77}
    ),
    "google-research-datasets/go_emotions": StandIn(
        write_go_emotions,
        EMOTIONS,
        "test",
        {"train": 42, "validation": 14, "test": 14},
        problem_type="multi_label_classification",
    ),
    "nyu-mll/glue": StandIn(write_glue, JUDGEMENTS, "test", {"train": 40, "validation": 12, "test": 14}),
    "nyu-mll/glue/stsb": StandIn(
        write_glue,
        ("score",),
        "test",
        {"train": 36, "validation": 4, "test": 12},
        problem_type="regression",
    ),
    "leondz/wnut_17": _tagged_standin(
        write_wnut_17, tuple(ENTITIES), {"train": 40, "validation": 12, "test": 14}
    ),
    "ncbi/ncbi_disease": _tagged_standin(
        write_ncbi_disease, tuple(DISEASES), {"train": 40, "validation": 12, "test": 14}
    ),
    "train.conll": _tagged_standin(
        write_conll,
        PLACES,
        {"train": 20, "validation": 6, "test": 8},
        reads={"train_file": "train.conll", "validation_file": "dev.conll", "test_file": "test.conll"},
    ),
    "bentrevett/multi30k": _text_standin(write_multi30k, train=24, validation=6, test=8),
    "WorkInTheDark/FairytaleQA": _text_standin(write_fairytale_qa, train=24, validation=6, test=8),
    "google-research-datasets/nq_open": _text_standin(write_nq_open, train=38, validation=2, test=8),
    "knkarthick/dialogsum": _text_standin(write_dialogsum, train=24, validation=6, test=12),
    "abisee/cnn_dailymail": _text_standin(write_cnn_dailymail, train=24, validation=6, test=8),
    "tuetschek/e2e_nlg": _text_standin(
        write_e2e_nlg, "12 of 24 training rows repeat an earlier text", train=24, validation=6, test=8
    ),
    "rajpurkar/squad": _text_standin(write_squad, train=39, validation=1, test=8),
    "allenai/ai2_arc": _text_standin(write_arc_easy, train=24, validation=6, test=8),
    "allenai/openbookqa": _text_standin(write_openbookqa, train=24, validation=6, test=8),
    "Salesforce/wikitext": _text_standin(
        write_wikitext,
        *(
            f"{split}: {2 * articles} rows hold nothing and are left out (first: {{folder}}[{split}] row 1)"
            for split, (articles, _) in _ARTICLES.items()
        ),
        train=24,
        validation=6,
        test=8,
    ),
    "yahma/alpaca-cleaned": _text_standin(write_alpaca, train=58, validation=1, test=1),
    "databricks/databricks-dolly-15k": _text_standin(write_dolly, train=54, validation=3, test=3),
    "HuggingFaceH4/no_robots": _text_standin(write_no_robots, train=38, validation=2, test=8),
    "HuggingFaceTB/smol-smoltalk": _text_standin(write_smol_smoltalk, train=99, validation=1, test=8),
}
