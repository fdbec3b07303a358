"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_MOST_LABELS = 20


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right.

    >>> print(table(("metric", "score"), [("accuracy", "0.9")]))
      metric    score
      accuracy    0.9
    """
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown.

    >>> print(markdown_table(("metric", "score"), [("accuracy", "0.9")]))
    | metric | score |
    |---|---:|
    | accuracy | 0.9 |
    """
    heads, *lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [header, *rows]]
    return "\n".join([heads, "|---" + "|---:" * (len(header) - 1) + "|", *lines])


def label_table(labels: Mapping[str, Mapping[str, float]], title: str, support: str) -> list[str]:
    """Precision, recall and F1 of labels; of many, those with the lowest F1.

    Args:
        labels: The scores by label: `precision`, `recall`, `f1` and `support`.
        title: Stands above them.
        support: What is counted.
    """
    shown = list(labels.items())
    if len(shown) > _MOST_LABELS:
        shown = sorted(shown, key=lambda item: item[1]["f1"])[: _MOST_LABELS // 2]
        title = f"The {len(shown)} with the lowest F1 of {len(labels)} (all are in metrics.json)"
    rows = [
        (name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), f"{row['support']:.0f}")
        for name, row in shown
    ]
    return [title, table(("label", "precision", "recall", "f1", support), rows)]
