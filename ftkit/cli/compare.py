"""`ftkit compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ftkit.cli import app, console, options

if TYPE_CHECKING:
    from ftkit.comparison import Comparison, Result


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run folders, recipes that made one, or folders that eval wrote."),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables in Markdown, as pull requests show them.")
    ] = False,
    json_: options.Json = False,
) -> None:
    """Put runs side by side that were scored on the same rows; differences are to the first."""
    console.start()
    from ftkit.comparison import compare as compare_runs

    comparison = compare_runs(runs)
    if json_:
        console.emit_json(comparison.to_json())
    else:
        console.emit("\n\n".join(_blocks(comparison, markdown=markdown)))


def _blocks(comparison: Comparison, *, markdown: bool) -> list[str]:
    """What is compared, its scores, and how far they are from the first one's."""
    first, *others = comparison.results
    names = comparison.headlines
    draw = console.markdown_table if markdown else console.table
    runs = [_made(result) for result in comparison.results]
    scores = [(result.name, *(_score(result, name) for name in names)) for result in comparison.results]
    blocks = [
        ("Runs", ("run", "method", "trained", "seconds", "precision", "model"), runs),
        (f"Scores on {first.metrics['split']} ({first.metrics['rows']:,} rows)", ("run", *names), scores),
        (
            f"Difference to {first.name}, with its 95 % interval over the rows",
            ("run", "metric", "difference", "95 % interval", ""),
            [row for other in others for row in _differences(comparison, other)],
        ),
    ]
    between = "\n\n" if markdown else "\n"
    return [f"{title}{between}{draw(header, rows)}" for title, header, rows in blocks]


def _made(result: Result) -> tuple[str, ...]:
    """What is known of how a run came about."""
    row = result.to_json()
    trained, seconds = row["trained_parameters"], row["train_seconds"]
    return (
        row["run"],
        row["method"],
        "-" if trained is None else f"{trained:,}",
        "-" if seconds is None else f"{seconds:,.0f}",
        row["precision"],
        row["model"],
    )


def _score(result: Result, name: str) -> str:
    from ftkit.report.results import figure

    scores = result.metrics["metrics"]
    return figure(scores[name]["value"]) if name in scores else "-"


def _differences(comparison: Comparison, other: Result) -> list[tuple[str, ...]]:
    """A row for every metric that both have."""
    rows: list[tuple[str, ...]] = []
    for name, found in comparison.differences[other.name].items():
        known = found.low is not None and found.high is not None
        interval = f"{found.low:+.4f} to {found.high:+.4f}" if known else "not known"
        verdict = "" if found.better is None else "better" if found.better else "worse"
        rows.append(
            (
                other.name,
                name,
                "not known" if found.value is None else f"{found.value:+.4f}",
                interval,
                verdict,
            )
        )
    return rows
