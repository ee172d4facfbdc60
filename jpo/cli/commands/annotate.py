"""jpo annotate: a page on which people compare candidates, conditional and joint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer

from jpo.cli.options import Host, Port
from jpo.cli.selecting import PANEL, ChoosingModel, ChoosingTemplate, no_model
from jpo.web.forms import Format

Strategy = Literal["random", "margin", "dopt"]  # these two stand in jpo.feedback.selection and jpo.web.rounds, which
Refit = Literal["linear", "adapter"]  # load more than a command's head should


Input = Annotated[
    str,
    typer.Option(
        "--input",
        help="Candidates: JSONL, JSON, CSV or Parquet, also tasks of Label Studio and records of Argilla; joint ones may "
        "stand among them.",
    ),
]
Output = Annotated[str, typer.Option("--output", help="Feedback records, written while verdicts come in.")]
FormatName = Annotated[
    Format,
    typer.Option("--format", help="Of the output: feedback (JSONL), csv, label-studio, argilla, preferences."),
]
Convert = Annotated[
    bool,
    typer.Option("--convert", help="Write the verdicts that --input already holds in that format; serve nothing."),
]
Annotators = Annotated[
    list[str] | None,
    typer.Option("--annotator", help="A name that gets a secret link of its own; may repeat. Others cannot enter."),
]
Overlap = Annotated[int, typer.Option("--overlap", help="Annotators of each item.")]
Repeat = Annotated[float, typer.Option("--repeat", help="Share of items that come again with sides exchanged.")]
Apart = Annotated[bool, typer.Option("--apart", help="Conditional items first, then joint ones; else mixed.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the order of items and of which side stands left.")]
Guideline = Annotated[
    str | None,
    typer.Option(
        "--guideline",
        help="A text file (Markdown) with what annotators should weigh. (default: accuracy, coherence, harmlessness)",
    ),
]
Select = Annotated[
    Strategy | None,
    typer.Option(
        "--select",
        help="Ask in rounds of --count items: answers in, refit, next round. By chance; the smallest margins; a D-optimal "
        "design.",
        rich_help_panel=PANEL,
    ),
]
Count = Annotated[int, typer.Option("--count", min=1, help="Items of a round.", rich_help_panel=PANEL)]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", help="Its margins choose the first round.", rich_help_panel=PANEL),
]
RefitName = Annotated[
    Refit,
    typer.Option(
        "--refit",
        help="linear: a reward over the hidden states, at once; adapter: a new one trained after each round.",
        rich_help_panel=PANEL,
    ),
]
Prefix = Annotated[str, typer.Option("--prefix", help="Path behind a reverse proxy, as /annotate.")]
UntilDone = Annotated[
    bool, typer.Option("--until-done", help="End when every item has its answers, so that a script goes on.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked; serve nothing.")]


def annotate(
    input: Input,
    output: Output,
    format: FormatName = "feedback",
    convert: Convert = False,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    annotator: Annotators = None,
    overlap: Overlap = 1,
    repeat: Repeat = 0.0,
    apart: Apart = False,
    seed: Seed = 0,
    guideline: Guideline = None,
    select: Select = None,
    count: Count = 20,
    model: ChoosingModel = None,
    adapter: Adapter = None,
    template: ChoosingTemplate = None,
    refit: RefitName = "linear",
    prefix: Prefix = "",
    until_done: UntilDone = False,
    dry_run: DryRun = False,
) -> None:
    """Let people compare candidates in the browser.

    One instruction with two responses, or two instruction-response
    pairs.

    jpo annotate --input joint.jsonl --output joint_feedback.jsonl

    Arrow keys choose, u takes back. Which side stands left is random and recorded. A record with the key `gold` (0, 1
    or 2) measures annotators and is left out of the output. Verdicts live in OUTPUT.annotations.sqlite, on disk before
    the page goes on; started again, everything goes on where it was. What comes out is what jpo interplay, jpo pairs
    --preferences and jpo train read.
    """
    from jpo.data.readers import check_apart
    from jpo.web.assignment import Rules
    from jpo.web.items import read_items
    from jpo.web.listen import check_prefix

    check_apart(output, [input])
    if convert:
        _convert(input, output, format)
        return
    rules = Rules(overlap, repeat, seed, apart)
    _check_rounds(select, model, adapter, template)
    check_prefix(prefix)
    items = read_items(input)
    _say_items(items)
    if dry_run:
        gold = sum(item.gold is not None for item in items)
        answers = (len(items) - gold) * overlap
        typer.echo(
            f"{answers} verdicts to give, beside {gold} gold items and a share of {repeat:g} repeated for each annotator"
        )
        return
    from jpo.web.listen import need_web

    need_web("jpo annotate")
    from jpo.web.project import Project
    from jpo.web.store import Store, naming_faults

    path = f"{output}.annotations.sqlite"
    with naming_faults(path), contextlib.closing(Store(path)) as store:
        project = Project(items, store, rules, _guideline(guideline), format, in_rounds=select is not None)
        rounds = None
        if select is not None:
            rounds = _rounds(project, select, count, (model, adapter, template), refit)
        _serve(project, rounds, output, (host, port, prefix), annotator or (), until_done)


def _convert(input: str, output: str, form: Format) -> None:
    from jpo.data.readers import iter_records
    from jpo.disk import write_text
    from jpo.web.exchange import exported, verdicts

    rows = [row for record in iter_records(input) for row in verdicts(record)]
    write_text(output, exported(rows, form))
    typer.echo(f"{len(rows)} verdicts in {output}")


def _say_items(items: Any) -> None:
    joint = sum(item.joint for item in items)
    gold = sum(item.gold is not None for item in items)
    typer.echo(f"{len(items)} items: {joint} joint, {len(items) - joint} conditional; {gold} of them gold")
    if items.repeated:
        typer.echo(f"{items.repeated} records repeat an item that stands before: they are asked once")
    if items.report.dropped:
        typer.echo(str(items.report))


def _guideline(path: str | None) -> str:
    from jpo.data.readers import read_text
    from jpo.web.project import GUIDELINE

    if path is None:
        return GUIDELINE
    return read_text(path).strip()


def _serve(
    project: Any,
    rounds: Any,
    output: str,
    where: tuple[str, int, str],
    names: Sequence[str],
    until_done: bool,
) -> None:
    """Serves until Ctrl-C, SIGTERM or the end; the records are written at the end whatever happens."""
    from jpo.web.annotate import Pages, build
    from jpo.web.listen import Listener, elsewhere, hosts, loopback

    (host, port, prefix), store = where, project.store
    key = None if loopback(host) else store.secret("key")
    links = {name: store.secret(f"link:{name}") for name in names}
    choose = None if rounds is None else rounds.choose
    pages = Pages(project, output=output, key=key, links=links, prefix=prefix, choose=choose)
    listener = Listener(build(pages, hosts(host)), host, port, prefix)
    pages.when_done, pages.when_failed = listener.end if until_done else None, listener.end
    _say_links(listener.url, host, key, links)
    if hint := elsewhere(host):
        typer.echo(hint)
    typer.echo(f"verdicts: {store.path}; records: {output}; Ctrl-C ends")
    try:
        listener.run()
    finally:
        count = project.write(output)
        typer.echo(f"{count} records in {output}")
    if pages.failure is not None:
        raise pages.failure


def _check_rounds(select: str | None, model: str | None, adapter: str | None, template: str | None) -> None:
    from jpo.errors import JpoError

    if select is None and (model or adapter or template):
        raise JpoError("--model, --adapter and --template: only --select knows them")
    if select not in (None, "random") and model is None:
        raise no_model(f"--select {select}")


def _rounds(project: Any, strategy: Strategy, count: int, scoring: tuple[str | None, ...], refit: Refit) -> Any:
    """What chooses the rounds; the first one is asked already. scoring: model, adapter, template."""
    from jpo.web.rounds import Rounds

    model, adapter, template = scoring
    lm = encoder = stored = None
    if strategy != "random":
        import jpo
        from jpo.evaluate.sampling import encoder_of

        lm = jpo.load(str(model), compute="auto")
        stored = lm.load_adapter(adapter) if adapter else None
        talks = any(not isinstance(item.candidate.instruction_0, str) for item in project.items)
        encoder = encoder_of(lm, stored, template, talks)
    rounds = Rounds(project, strategy, count, lm, encoder, stored, refit)
    if project.round_is_over():
        project.release(rounds.choose())
    typer.echo(
        f"rounds of {count} by {strategy}; {len(project.asked())} of {len(project.items)} items are asked so far"
    )
    return rounds


def _say_links(url: str, host: str, key: str | None, links: Mapping[str, str]) -> None:
    query = f"?key={key}" if key else ""
    if key:
        typer.echo(
            f"warning: everybody who reaches {host} can see these pages; only who has a link below can enter", err=True
        )
    for name, secret in links.items():
        typer.echo(f"{name}: {url}/a/{secret}")
    if not links:
        typer.echo(f"annotate: {url}/{query}")
    typer.echo(f"overview: {url}/overview{query}")


def register(app: typer.Typer) -> None:
    """Adds `jpo annotate`."""
    app.command("annotate")(annotate)
