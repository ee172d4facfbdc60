"""jpo score: log-likelihoods, margins and perplexity of records under a model."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from jpo.cli.options import Check


def score(
    input: Annotated[str, typer.Argument(help="Preference pairs, or {instruction, response} examples.")],
    model: Annotated[str, typer.Option("--model", help="smollm2-135m, tiny, a directory, a GGUF file.")],
    adapter: Annotated[
        Optional[str],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--adapter", help="Adapter; the model without it is the reference, its template is used."),
    ] = None,
    scope: Annotated[str, typer.Option("--scope", help="joint (every token but the first) or response.")] = "joint",
    beta: Annotated[float, typer.Option("--beta", help="Scales the rewards beta (log p - log p_ref).")] = 0.1,
    template: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--template", help="A template's name or text. (default: the adapter's, else spaced)"),
    ] = None,
    output: Annotated[Optional[str], typer.Option("--output", help="JSONL file of the rows.")] = None,  # noqa: UP045
    compute: Annotated[
        str, typer.Option("--compute", help="Number type of products; jpo doctor compares them.")
    ] = "float32",
    check: Check = True,
) -> None:
    """Score records: a table of accuracy, mean margin and perplexity, and with --output a row for each record.

    jpo score pairs.jsonl --model smollm2-135m --adapter out --output scores.jsonl
    """
    import jpo
    from jpo.cli.progress import bar
    from jpo.data import read_records
    from jpo.data.report import Report
    from jpo.evaluate.sampling import encoder_of
    from jpo.evaluate.scoring import records_of, score, summary
    from jpo.formats.files import write_text

    records = read_records(input)
    lm = jpo.load(model, compute=compute, check=check)
    own = lm.load_adapter(adapter) if adapter else {}
    report = Report()
    talks = any(given.conversational for given in records_of(records, Report()))
    encoder = encoder_of(lm, own, template, talks)
    with bar("records") as progress:
        rows = list(score(lm, records, encoder=encoder, scope=scope, beta=beta, report=report, progress=progress))
    typer.echo(encoder.report() if not report.dropped else report.then(encoder.report()))
    for name, value in summary(rows).items():
        typer.echo(f"{name:>22}  {value:.6g}")
    if output is not None:
        write_text(output, "".join(json.dumps(row) + "\n" for row in rows))
        typer.echo(f"{len(rows)} rows in {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo score`."""
    app.command("score")(score)
