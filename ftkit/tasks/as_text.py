"""Labels and entities as text: what a model that writes is asked, and how its answer is read.

- A label is written as its name; several as their names with a comma and a space between them.
- Entities are written in the order of the text: by a model that was trained to as `[TYPE] words [TYPE]
  words`; in prompts as lines `TYPE: words`, or as JSON `[{"type": TYPE, "text": words}, ...]`.
- Where there is nothing to name, `none` is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from ftkit.errors import InputError, UsageError
from ftkit.questions import pair_fields
from ftkit.records import Entities, Prediction, Record, Span, Writing
from ftkit.words import entities_by_characters

if TYPE_CHECKING:
    from ftkit.prompts.template import Template
    from ftkit.training.language_head import Kind
    from ftkit.training.writing import Rendered, WritingHead

NONE = "none"
ENTITY_FORMS = {
    "lines": "one a line as TYPE: words, or none",
    "json": 'as JSON like [{"type": TYPE, "text": words}]',
}
"""What a prompt can say of the forms in which entities are written."""
_MARK = "\0"
_ENTITY = re.compile(r"\[([^\[\]]+)\]([^\[]*)")


def default_template(family: str, asked: str, *, paired: bool) -> str:
    """What a model reads by default: the text, and for a decoder the name of what it is to write.

    >>> default_template("decoder", "Label", paired=False)
    '{{ text }}\\nLabel:'
    """
    text = "{{ text }}\n{{ text_pair }}" if paired else "{{ text }}"
    return text if family == "encoder_decoder" else f"{text}\n{asked}:"


def checked_template(
    value: str | None, known: Sequence[str] = ("text", "text_pair"), needed: str = "text"
) -> str | None:
    """A template that names what it needs and nothing that is not there.

    Raises:
        ValueError: It does not.
    """
    from ftkit.prompts.template import Template

    if value is None:
        return value
    fields = Template(value).fields
    if unknown := sorted(fields - set(known)):
        raise ValueError(f"the template names {unknown[0]!r}; the fields are: {', '.join(known)}")
    if needed not in fields:
        raise ValueError(f"the template does not name the field {needed}")
    return value


def rendered(
    record: Record, template: str, answer: str | None, fields: Mapping[str, str] | None = None
) -> Rendered:
    """A record's text by a template, and the answer after it.

    Args:
        record: The record.
        template: Jinja.
        answer: The answer; `None` where it is to be written.
        fields: What the template can name; by default the text, and the second one of a pair.

    Raises:
        InputError: The template fails for this record.
    """
    from ftkit.training.writing import Rendered

    fields = pair_fields(record) if fields is None else fields
    made = _template(template)
    try:
        prompt = made.render(fields)
        # The longer of the two is what may be shortened; where it stands, a mark in its place tells.
        longer = max((name for name in fields if name in made.fields), key=lambda name: len(fields[name]))
        start = made.render({**fields, longer: _MARK}).find(_MARK)
    except ValueError as error:
        raise InputError(str(error), where=record.where, hint="task.template") from None
    end = start + len(fields[longer])
    cut = (start, end) if start >= 0 and prompt[start:end] == fields[longer] else (0, len(prompt))
    if answer is None:
        return Rendered(prompt, (), cut)
    # Most tokenizers keep a space with the word after it, so it belongs to the answer.
    text = f"{prompt} {answer}"
    return Rendered(text, ((len(prompt), len(text)),), cut)


@cache
def _template(source: str) -> Template:
    from ftkit.prompts.template import Template

    return Template(source)


def writing_head(
    family: str,
    *,
    template: str | None,
    asked: str,
    write: Callable[[Record], str],
    read: Callable[[str, Record], Prediction],
    label_smoothing: float,
) -> WritingHead:
    """The objective of a model that writes labels or entities.

    Args:
        family: Of the model.
        template: Makes what it reads; `None` for the default.
        asked: What a decoder is asked for by default.
        write: The answer to a record as text.
        read: What such a text says; one that says nothing that can be read gives a prediction that failed.
        label_smoothing: As for any language model head.
    """

    def render(record: Record) -> Rendered:
        paired = record.text_pair is not None
        chosen = template or default_template(family, asked, paired=paired)
        if isinstance(record.target, Writing) and record.target.text:
            # A text already: an answer to a question, or the head asks where an answer ends.
            return rendered(record, chosen, record.target.text)
        return rendered(record, chosen, None if record.target is None else write(record))

    return writing_objective(family, render=render, read=read, label_smoothing=label_smoothing)


def writing_objective(
    family: str,
    *,
    render: Callable[[Record], Rendered],
    read: Callable[[str, Record], Prediction],
    label_smoothing: float,
) -> WritingHead:
    """The objective of a model that writes, from how a record is rendered and an answer is read."""
    from ftkit.training.writing import WritingHead

    return WritingHead(
        kind=cast("Kind", family),
        label_smoothing=label_smoothing,
        render=lambda record, tokenizer: render(record),
        read=lambda text, record, known: read(text, record),
    )


def written_template(task: Any) -> Any:
    """A template is for a model that writes.

    Raises:
        ValueError: There is one, and an output layer gives the answer.
    """
    if task.template is not None and not task.writes:
        raise ValueError("template: a model with a head reads the text as it is; it is for formulation: text")
    return task


def text_refusal(family: str) -> str:
    """Why models of a family cannot write; empty where they can."""
    return "formulation: text needs a model that writes; an encoder does not" if family == "encoder" else ""


def text_usage(
    auto_class: str, generation: Mapping[str, Any], *, template: str | None, asked: str, pairs: bool
) -> list[str]:
    """Python lines that let `model` and `tokenizer` write an answer."""
    family = writing_family(auto_class)
    chosen = template or default_template(family, asked, paired=pairs)
    return generation_lines(family, example_inputs(chosen, pairs=pairs), generation)


def example_inputs(template: str, *, pairs: bool) -> str:
    """A Python expression for what a model reads of a text, or of two.

    >>> example_inputs("{{text}} {% if text_pair is defined %}{{ text_pair }}{% endif %}?", pairs=False)
    'tokenizer("... ?", return_tensors="pt")'
    """
    fields = {"text": "...", **({"text_pair": "..."} if pairs else {})}
    prompt = json.dumps(_template(template).render(fields), ensure_ascii=False)
    return f'tokenizer({prompt}, return_tensors="pt")'


def writing_family(auto_class: str) -> str:
    """The family of models that write, by the transformers auto class that loads them."""
    return "encoder_decoder" if "Seq2Seq" in auto_class else "decoder"


def generation_lines(family: str, inputs: str, generation: Mapping[str, Any]) -> list[str]:
    """Python lines that print what follows `inputs`."""
    options = ", ".join(f"{name}={value!r}" for name, value in generation.items())
    new = "" if family == "encoder_decoder" else '[inputs["input_ids"].shape[1] :]'
    return [
        f"inputs = {inputs}",
        'inputs.pop("token_type_ids", None)',
        f"written = model.generate(**inputs, {options}, pad_token_id=tokenizer.pad_token_id)[0]",
        f"print(tokenizer.decode(written{new}, skip_special_tokens=True).strip())",
    ]


def read_label(text: str, record: Record, labels: Sequence[str]) -> Prediction:
    """The label that a text names, whatever its case; the prediction `""` where it names none.

    >>> read_label("Refund Status.", Record("x"), ["refund_status"]).value
    'refund_status'
    """
    found = _label(text, labels)
    return Prediction(found, failed="" if found else text or "(nothing)")


def read_labels(text: str, record: Record, labels: Sequence[str]) -> Prediction:
    """The labels that a text names; what names none is left out, and the prediction failed."""
    parts = [part for part in text.split(",") if part.strip()]
    if [_plain(part) for part in parts] == [NONE]:
        return Prediction(())
    found = {_label(part, labels) for part in parts}
    failed = text or "(nothing)" if "" in found or not parts else ""
    return Prediction(tuple(name for name in labels if name in found), failed=failed)


def first_line(text: str) -> str:
    """The first line that says something: what comes after a label is no part of it.

    >>> first_line(" blue\\n\\nText: ...")
    'blue'
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def label_refusal(labels: Sequence[str], *, several: bool = False, marks: str = "") -> str:
    """Why labels cannot be told apart once they are written; empty where they can.

    Args:
        labels: How each label is written.
        several: Whether an answer names any number of labels, with commas between them, or says `none`.
        marks: Further characters that tell where a label begins or ends.

    >>> label_refusal(["B C", "b_c"])
    "the labels 'B C' and 'b_c' read alike: case, spaces, underscores and points around them do not count"
    """
    marks += "," if several else ""
    known: dict[str, str] = {}
    for name in labels:
        plain = _plain(name)
        if not plain:
            return f"the label {name!r} reads as nothing"
        if several and plain == NONE:
            return f"the label {name!r} reads as no label at all"
        if held := [mark for mark in marks if mark in name]:
            return f"the label {name!r} holds {held[0]!r}, which tells where a label begins or ends"
        if (other := known.setdefault(plain, name)) != name:
            return (
                f"the labels {other!r} and {name!r} read alike: case, spaces, underscores and points around "
                "them do not count"
            )
    return ""


def refuse_unreadable(reason: str) -> None:
    """Refuse a task whose labels, once written, could not be read again.

    Raises:
        UsageError: There is such a reason.
    """
    if reason:
        raise UsageError(f"task.formulation: text: {reason}", hint="rename it, or take formulation: head")


def _label(text: str, labels: Sequence[str]) -> str:
    """The label that is written like this, else the first that reads alike; empty where there is none."""
    if (exact := text.strip()) in labels:
        return exact
    return next((name for name in labels if _plain(name) == _plain(text)), "")


def _plain(text: str) -> str:
    return " ".join(text.strip().strip(".").replace("_", " ").casefold().split())


def written_entities(target: Entities, form: str = "inline", names: Mapping[str, str] | None = None) -> str:
    """Entities as text.

    Args:
        target: The entities.
        form: `inline`, `lines` or `json`.
        names: What is written for each type; by default its name.
    """
    pairs = [
        ((names or {}).get(span.label, span.label), " ".join(target.text[span.start : span.end].split()))
        for span in target.spans
    ]
    if form == "json":
        listed = [{"type": kind, "text": words} for kind, words in pairs]
        return json.dumps(listed, ensure_ascii=False)
    if form == "lines":
        return "\n".join(f"{kind}: {words}" for kind, words in pairs) or NONE
    return " ".join(f"[{kind}] {words}" for kind, words in pairs) or NONE


def read_entities(text: str, record: Record, labels: Mapping[str, str], form: str = "inline") -> Prediction:
    """The entities that a text names, found again in the record's text; `labels` holds the type that each
    written name stands for.

    Each is looked for after the one before it, then anywhere that is not taken. One that the text does
    not hold, or of a type that there is not, is left out, and the prediction failed.
    """
    if _plain(text) == NONE:
        return Prediction(entities_by_characters((), record))
    spans: list[Span] = []
    pairs, odd = _PARSERS[form](text)
    last = 0
    for kind, words in pairs:
        label = _label(kind, list(labels))
        place = _place(words, record, last, spans) if label else None
        if place is None:
            odd.append(f"[{kind}] {words.strip()}")
            continue
        spans.append(Span(*place, labels[label]))
        last = place[1]
    found = entities_by_characters(sorted(spans, key=lambda span: span.start), record)
    return Prediction(found, failed="; ".join(odd))


def _inline(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Types with their words, and what is neither."""
    return _ENTITY.findall(text), [] if _ENTITY.match(text.lstrip()) else [text or "(nothing)"]


def _lines(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    pairs, odd = [], []
    for line in filter(str.strip, text.splitlines()):
        kind, colon, words = line.partition(":")
        if colon and words.strip():
            pairs.append((kind, words))
        elif _plain(line) != NONE:
            odd.append(line.strip())
    return pairs, odd if pairs or odd else [text or "(nothing)"]


def _json(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The first list in the text; what a model adds to it says nothing."""
    try:
        listed, _ = json.JSONDecoder().raw_decode(text[text.index("[") :])
        return [(str(one["type"]), str(one["text"])) for one in listed], []
    except (ValueError, KeyError, TypeError):
        return [], [text or "(nothing)"]


_PARSERS = {"inline": _inline, "lines": _lines, "json": _json}


def _place(words: str, record: Record, start: int, taken: Sequence[Span]) -> tuple[int, int] | None:
    """Where the words stand in a record's text as whole words, from `start` on or else before it."""
    parts = [re.escape(part) for part in words.split()]
    if not parts:
        return None
    # Each match is looked for by itself: one that cuts a word may hide one that does not.
    pattern = re.compile("(?=(" + r"\s*".join(parts) + "))")
    found = [match.span(1) for match in pattern.finditer(record.text)]
    places = [place for place in found if _whole_words(place, record) and _free(place, taken)]
    return next((place for place in places if place[0] >= start), next(iter(places), None))


def _whole_words(place: tuple[int, int], record: Record) -> bool:
    """Whether no word is cut: none of the record's, or none by the letters around."""
    start, end = place
    starts, ends = zip(*record.words, strict=True) if record.words else ((), ())
    letters = re.compile(r"\w")
    apart = not letters.match(record.text[:start][-1:]) and not letters.match(record.text, end)
    return apart or (start in starts and end in ends)


def _free(place: tuple[int, int], taken: Sequence[Span]) -> bool:
    return all(place[1] <= span.start or place[0] >= span.end for span in taken)
