"""Prompt templates: a small, safe part of Jinja."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LONGEST = 20_000
_LONGEST_RENDERED = 1_000_000
_FILTERS = ("capitalize", "default", "length", "lower", "replace", "title", "trim", "truncate", "upper")
# Whatever could loop, call, reach into objects or grow without bound; a prompt needs none of it.
_REFUSED: Mapping[type[nodes.Node], str] = {
    nodes.For: "a loop",
    nodes.Call: "a call",
    nodes.Getattr: "an attribute",
    nodes.Macro: "a macro",
    nodes.Mul: "a multiplication",
    nodes.Pow: "a power",
    nodes.Include: "an include",
    nodes.Import: "an import",
    nodes.FromImport: "an import",
    nodes.Extends: "a parent template",
    nodes.CallBlock: "a call",
    nodes.Assign: "an assignment",
    nodes.AssignBlock: "an assignment",
    nodes.Mod: "a remainder or a format",
}


def chat_template_problem(source: str) -> str:
    """What is wrong with the syntax of a chat template; empty where nothing is.

    >>> chat_template_problem("{% for m in messages %}{{ m.content }}")[:26]
    'Unexpected end of template'
    """
    # transformers' own tag, which marks what the assistant says.
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateError as error:
        return str(error)
    return ""


class Template:
    """A template for a row of data, such as `Review: {{ text }}`.

    Args:
        source: Jinja with fields, conditions, and the filters in `_FILTERS`. It is rendered in Jinja's
            sandbox; a name that is no field is an error, never an empty string.

    Raises:
        ValueError: It is no template, or uses more than that.
    """

    def __init__(self, source: str) -> None:
        if len(source) > _LONGEST:
            raise ValueError(f"the template has {len(source):,} characters; at most {_LONGEST:,}")
        self.source = source
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        self._environment.filters["replace"] = _replaced
        try:
            tree = self._environment.parse(source)
        except TemplateError as error:
            raise ValueError(f"no template: {error}") from None
        for node in tree.find_all(nodes.Node):
            if what := _REFUSED.get(type(node)):
                raise ValueError(f"the template holds {what} (line {node.lineno}), which is refused")
            if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
                raise ValueError(f"the template's filter {node.name!r} is none of: {', '.join(_FILTERS)}")
        self._template = self._environment.from_string(source)
        self.fields = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}

    def render(self, fields: Mapping[str, str]) -> str:
        """The prompt of a row.

        Raises:
            ValueError: A field is missing, or of the wrong kind for a filter.

        >>> Template("Review: {{ text | trim }}").render({"text": " good "})
        'Review: good'
        """
        try:
            return self._template.render(**fields)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the template fails: {error}") from None


def _replaced(text: str, old: str, new: str, count: int = -1) -> str:
    """Jinja's `replace`, for a result of bounded size.

    Raises:
        TypeError: The result would be too long.
    """
    if len(text) + text.count(old) * len(new) > _LONGEST_RENDERED:
        raise TypeError(f"replace would make a text of more than {_LONGEST_RENDERED:,} characters")
    return text.replace(old, new, count)
