"""jpo score: log-likelihoods, margins and perplexity of records under a model."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from jpo.cli.options import Check, Model
from jpo.cli.sharding import ExecutorName, ShardCount, ShardText, check_alone, over_executor, part_of_whole


def score(
    input: Annotated[str, typer.Argument(help="Preference pairs, or {instruction, response} examples.")],
    model: Model,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Adapter; the model without it is the reference, its template is used."),
    ] = None,
    scope: Annotated[str, typer.Option("--scope", help="joint (every token but the first) or response.")] = "joint",
    beta: Annotated[float, typer.Option("--beta", help="Scales the rewards beta (log p - log p_ref).")] = 0.1,
    template: Annotated[
        str | None,
        typer.Option("--template", help="A template's name or text. (default: the adapter's, else spaced)"),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="JSONL file of the rows.")] = None,
    compute: Annotated[
        str, typer.Option("--compute", help="Number type of products; jpo doctor compares them.")
    ] = "float32",
    check: Check = True,
    executor: ExecutorName = None,
    shards: ShardCount = None,
    shard: ShardText = None,
) -> None:
    """Score records: a table of accuracy, mean margin and perplexity, and with --output a row for each record.

    jpo score pairs.jsonl --model smollm2-135m --adapter out --output scores.jsonl
    """
    from jpo.data.readers import check_apart, read_records
    from jpo.disk import aside, make_folder_of, write_text
    from jpo.errors import JpoError
    from jpo.evaluate.scoring import check_settings, summary
    from jpo.parallel.shards import Shard

    if (executor or shard) and not output:
        raise JpoError("--executor and --shard write files: give --output FILE")
    check_settings(scope, beta)
    check_alone("jpo score", executor, shard)
    if output is not None:
        check_apart(output, [input])
        make_folder_of(output)  # what is amiss there is said at once
    own: dict[str, Any] = {"adapter": adapter, "scope": scope, "beta": beta, "template": template, "check": check}
    if executor:
        if over_executor(executor, shards, str(output)):
            _told(summary(read_records(output)), output)
        return
    part = Shard.parse(shard) if shard else None
    rows = _scored(input, model, compute, part, **own)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if part is None:
        if output is not None:
            write_text(output, text)
        _told(summary(rows), output)
        return
    with aside(part.path(str(output))) as path:
        write_text(path, text)
    typer.echo(f"{len(rows)} rows in {part_of_whole(part, empty=not rows)}")


def _scored(
    input: str,
    model: str,
    compute: Any,  # which type it may be is the model's to say
    part: Any,
    *,
    adapter: str | None,
    scope: str,
    beta: float,
    template: str | None,
    check: bool,
) -> list[dict[str, Any]]:
    """The rows of the records, or of a shard of them; what became of the records is said."""
    import jpo
    from jpo.cli.progress import bar
    from jpo.data import read_records
    from jpo.data.report import Report
    from jpo.evaluate.sampling import encoder_of
    from jpo.evaluate.scoring import records_of, score

    records = read_records(input)
    lm = jpo.load(model, compute=compute, check=check)
    own = lm.load_adapter(adapter) if adapter else {}
    talks = any(given.conversational for given in records_of(records, Report()))
    encoder, report = encoder_of(lm, own, template, talks), Report()
    options: dict[str, Any] = {"encoder": encoder, "scope": scope, "beta": beta, "report": report, "shard": part}
    with bar("records") as progress:
        rows = list(score(lm, records, progress=progress, **options))
    typer.echo(encoder.report() if not report.dropped else report.then(encoder.report()))
    return rows


def _told(figures: dict[str, float], output: str | None) -> None:
    for name, value in figures.items():
        typer.echo(f"{name:>22}  {value:.6g}")
    if output is not None:
        typer.echo(f"{figures['records']} rows in {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo score`."""
    app.command("score")(score)
