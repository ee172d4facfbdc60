"""jpo annotate: a page on which people compare candidates, conditional and joint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Optional

import typer

from jpo.cli.options import Host, Port
from jpo.web.forms import Format


def annotate(
    input: Annotated[
        str,
        typer.Option(
            "--input",
            help="Candidates: JSONL, JSON, CSV or Parquet, also tasks of Label Studio and records of Argilla; joint ones may "
            "stand among them.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="Feedback records, written while verdicts come in.")],
    format: Annotated[
        Format,
        typer.Option("--format", help="Of the output: feedback (JSONL), csv, label-studio, argilla, preferences."),
    ] = "feedback",
    convert: Annotated[
        bool,
        typer.Option("--convert", help="Write the verdicts that --input already holds in that format; serve nothing."),
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    annotator: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--annotator", help="A name that gets a secret link of its own; may repeat. Others cannot enter."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", help="Annotators of each item.")] = 1,
    repeat: Annotated[
        float, typer.Option("--repeat", help="Share of items that come again with sides exchanged.")
    ] = 0.0,
    apart: Annotated[
        bool, typer.Option("--apart", help="Conditional items first, then joint ones; else mixed.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of items and of which side stands left.")] = 0,
    guideline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--guideline",
            help="A text file with what annotators should weigh. (default: accuracy, coherence, harmlessness)",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Path behind a reverse proxy, as /annotate.")] = "",
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when every item has its answers, so that a script goes on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked; serve nothing.")] = False,
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
    from jpo.web.assignment import Rules
    from jpo.web.items import read_items
    from jpo.web.listen import check_prefix

    if convert:
        _convert(input, output, format)
        return
    rules = Rules(overlap, repeat, seed, apart)
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
        project = Project(items, store, rules, _guideline(guideline), format)
        _serve(project, output, host, port, prefix, annotator or (), until_done)


def _convert(input: str, output: str, form: Format) -> None:
    from jpo.data.readers import iter_records
    from jpo.formats.files import write_text
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
    from jpo.web.project import GUIDELINE

    if path is None:
        return GUIDELINE
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _serve(
    project: Any, output: str, host: str, port: int, prefix: str, names: Sequence[str], until_done: bool
) -> None:
    """Serves until Ctrl-C, SIGTERM or the end; the records are written at the end whatever happens."""
    from jpo.web.annotate import Pages, build
    from jpo.web.listen import Listener, hosts, loopback

    store = project.store
    key = None if loopback(host) else store.secret("key")
    links = {name: store.secret(f"link:{name}") for name in names}
    pages = Pages(project, output=output, key=key, links=links, prefix=prefix)
    listener = Listener(build(pages, hosts(host)), host, port, prefix)
    pages.when_done = listener.end if until_done else None
    _say_links(listener.url, host, key, links)
    typer.echo(f"verdicts: {store.path}; records: {output}; Ctrl-C ends")
    try:
        listener.run()
    finally:
        count = project.write(output)
        typer.echo(f"{count} records in {output}")


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
