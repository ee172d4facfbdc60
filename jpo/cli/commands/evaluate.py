"""jpo evaluate: win-rates, from verdict caches, from generations that a judge compares with gold, from AlpacaEval 2."""

from __future__ import annotations

import itertools
import json as json_
import os
from typing import Annotated, Any

import typer

from jpo.cli import judge_options as flags
from jpo.cli.sharding import ExecutorName, ShardCount, ShardText, check_alone, over_executor


@flags.with_judging
def evaluate(
    verdicts: Annotated[
        str | None,
        typer.Option("--verdicts", help="Verdict cache: {model: {item: model|gold|equal}} as JSON."),
    ] = None,
    generations: Annotated[
        list[str] | None,
        typer.Option("--generations", help="Outputs of jpo generate, for --judge or --alpaca-eval-output; may repeat."),
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option("--gold", help="Test records {instruction, gold_response, id?}; joined by id and instruction."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="openai, local or module:function; asked about each output in both orders."),
    ] = None,
    known_verdicts: Annotated[
        list[str] | None,
        typer.Option("--known-verdicts", help="Verdict cache whose comparisons are not asked again; may repeat."),
    ] = None,
    verdicts_output: Annotated[
        str | None,
        typer.Option("--verdicts-output", help="Also add the verdicts to this verdict cache."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Judged outputs, JSONL; run again to go on. (default: GENERATIONS.judged.jsonl)"),
    ] = None,
    judged: Annotated[
        list[str] | None,
        typer.Option("--judged", help="Judged outputs of earlier runs, instead of asking; may repeat."),
    ] = None,
    alpaca_eval_output: Annotated[
        str | None,
        typer.Option("--alpaca-eval-output", help="Write --generations here as AlpacaEval's model_outputs."),
    ] = None,
    alpaca_eval_annotations: Annotated[
        str | None,
        typer.Option("--alpaca-eval-annotations", help="AlpacaEval's annotations.json, to score."),
    ] = None,
    alpaca_eval_difficulty: Annotated[
        str | None,
        typer.Option(
            "--alpaca-eval-difficulty",
            help="AlpacaEval's instruction_difficulty.csv, or its df_gamed.csv, for its own length-controlled win-rate.",
        ),
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="Also write unrounded figures here.")] = None,
    executor: ExecutorName = None,
    shards: ShardCount = None,
    shard: ShardText = None,
    *,
    judging: flags.Judging,
) -> None:
    """Win-rates against gold responses, (win + tie / 2) / total, with intervals and paired comparisons.

    One of --verdicts (a cache to score), --generations with --gold and --judge, --judged, or --alpaca-eval-annotations.
    Generations give a row for each model and temperature: the mean over training seeds (jpo generate --name groups the
    adapters of one method) and Student's interval, the interval over items, the length-controlled win-rate, the share
    longer than gold. AlpacaEval: jpo evaluate --generations g.jsonl --alpaca-eval-output outputs.json, then
    alpaca_eval --model_outputs outputs.json, then --alpaca-eval-annotations.
    """
    sources = {"--verdicts": verdicts, "--generations": generations, "--judged": judged,
               "--alpaca-eval-annotations": alpaca_eval_annotations}  # fmt: skip
    _check_one(sources)
    check_alone("jpo evaluate", executor, shard)
    if (executor or shard) and not judge:
        from jpo.errors import JpoError

        raise JpoError("--executor and --shard deal out what a judge is asked: give --generations, --gold and --judge")
    if verdicts:
        figures = _verdicts(verdicts)
    elif alpaca_eval_annotations:
        figures = _annotations(alpaca_eval_annotations, alpaca_eval_difficulty)
    elif judged:
        figures = _table_of(judged)
    elif alpaca_eval_output:
        _alpaca_eval(generations or [], alpaca_eval_output)
        return
    else:
        dealt = (executor, shards, shard)
        found = _judged(generations or [], gold, judge, known_verdicts or [], output, verdicts_output, judging, dealt)
        if found is None:
            return
        figures = found
    if json:
        from jpo.disk import write_text

        write_text(json, json_.dumps(figures, indent=1))


def _check_one(sources: dict[str, Any]) -> None:
    """JpoError unless exactly one of the sources of verdicts is given."""
    from jpo.errors import JpoError

    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        what = f"got {' and '.join(given)}" if given else "got none"
        raise JpoError(f"one of {', '.join(sources)} is needed, {what}")


def _judged(
    generations: list[str],
    gold: str | None,
    judge: str | None,
    known_verdicts: list[str],
    output: str | None,
    verdicts_output: str | None,
    judging: flags.Judging,
    dealt: tuple[str | None, int | None, str | None],
) -> dict[str, Any] | None:
    """The figures of generations whose comparison with gold a judge is asked for; dealt: executor, shards, shard. None
    where this process computed a shard, or worked for another."""
    from jpo.cli.progress import bar
    from jpo.data.readers import check_apart
    from jpo.errors import JpoError
    from jpo.evaluate.judging import judge_generations
    from jpo.evaluate.released import read_known, write_verdicts
    from jpo.parallel.shards import Shard

    if not gold or not judge:
        raise JpoError("--generations needs --gold and --judge (or --alpaca-eval-output)")
    executor, shards, shard = dealt
    path = output or f"{os.path.splitext(generations[0])[0]}.judged.jsonl"
    check_apart(path, [*generations, gold])
    if executor and not over_executor(executor, shards, path, judging.values["journal"]):
        return None
    part = Shard.parse(shard) if shard else None
    if part is not None:
        judging, path = judging.of_shard(part, path), part.path(path)
    asked = judging.judge(judge)
    known = read_known(known_verdicts)
    with bar("judged") as progress:
        rows, summary, missing = judge_generations(
            generations, gold, asked, path, known=known, progress=progress, shard=part, **judging.options(judge)
        )
    if part is not None:
        typer.echo(f"{summary}; shard {part} in {path}; jpo join puts the shards together")
        return None
    if verdicts_output:
        typer.echo(f"{write_verdicts(verdicts_output, rows)} verdicts in {verdicts_output}")
    typer.echo(f"{summary}; judged outputs in {path}; test items without an output: {missing}")
    return _table(rows) | {"missing": missing, "annotator": asked.name}


def _verdicts(path: str) -> dict[str, Any]:
    from jpo.evaluate import bootstrap_difference, read_verdicts

    found = read_verdicts(path)
    results = {model: rate.to_dict() for model, rate in found.items()}
    for model, row in results.items():
        typer.echo(
            f"{model}: wins {row['wins']}, losses {row['losses']}, ties {row['ties']}, win-rate {100 * row['win_rate']:.1f} % "
            f"(95 %: {100 * row['low']:.1f} to {100 * row['high']:.1f}), longer than gold {100 * row['longer_than_gold']:.1f} %"
        )
    comparisons = []
    for a, b in itertools.combinations(found, 2):
        shared = sorted(found[a].scores.keys() & found[b].scores.keys())
        if len(shared) > 1:
            row = bootstrap_difference(
                [found[a].scores[key] for key in shared], [found[b].scores[key] for key in shared]
            )
            comparisons.append({"models": [a, b], **row})
            typer.echo(
                f"{a} - {b}: {100 * row['difference']:+.1f} points on {row['n']} shared items "
                f"(95 %: {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
            )
    return {"win_rates": results, "comparisons": comparisons}


def _table_of(files: list[str]) -> dict[str, Any]:
    from jpo.data import read_records
    from jpo.errors import DataError

    rows = read_records(files)
    for row in rows:
        missing = [
            key for key in ("id", "model", "temperature", "response_0", "response_1", "feedback") if key not in row
        ]
        if missing:
            raise DataError(f"{row.where}: no judged output of jpo evaluate: the key {missing[0]} is missing")
    return _table(rows)


def _table(rows: Any) -> dict[str, Any]:
    from jpo.evaluate.winrate import format_table, win_rates

    table = win_rates(rows)
    typer.echo(format_table(table))
    return table


def _annotations(path: str, difficulty: str | None) -> dict[str, Any]:
    from jpo.evaluate.alpaca_eval import read_annotations
    from jpo.evaluate.alpaca_regression import read_difficulty

    found = read_annotations(path, read_difficulty(difficulty) if difficulty else None)
    for model, row in found.items():
        rates = {"win-rate": row["win_rate"], "length-controlled": row["length_controlled"]["win_rate"]}
        shown = ", ".join(f"{name} {'-' if rate is None else f'{100 * rate:.1f} %'}" for name, rate in rates.items())
        own = row["alpaca_eval"]
        value = own["length_controlled_winrate"]
        shown += f", {own['glm']} {own['problem'] if value is None else f'{value:.1f} %'}"
        typer.echo(
            f"{model}: wins {row['wins']}, losses {row['losses']}, draws {row['draws']}, {shown}, failed {row['failed']}, "
            f"mean length {row['average_length']:.0f}"
        )
    return {"alpaca_eval": found}


def _alpaca_eval(generations: list[str], path: str) -> None:
    from jpo.data.readers import check_apart, read_records
    from jpo.evaluate.alpaca_eval import write_alpaca_eval_outputs

    check_apart(path, generations)
    count = write_alpaca_eval_outputs(path, read_records(generations))
    typer.echo(f"{count} outputs written to {path}: alpaca_eval --model_outputs {path}")


def register(app: typer.Typer) -> None:
    """Adds `jpo evaluate`."""
    app.command("evaluate")(evaluate)
