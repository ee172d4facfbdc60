"""jpo annotate: a page on which people compare candidates, conditional and joint."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def annotate(
    input: Annotated[
        str, typer.Option("--input", help="Candidates: JSONL, JSON, CSV or Parquet; joint ones may stand among them.")
    ],
    output: Annotated[str, typer.Option("--output", help="Feedback records (JSONL), written while verdicts come in.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. (default: this machine alone)")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 8765,
    annotator: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads annotations at run time, also on Python 3.10)
        typer.Option("--annotator", help="A name that gets a secret link of its own; may repeat. Others cannot enter."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", help="Annotators of each item.")] = 1,
    repeat: Annotated[
        float, typer.Option("--repeat", help="Share of items that come again with sides exchanged.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of items and of which side stands left.")] = 0,
    guideline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--guideline",
            help="A text file with what annotators should weigh. (default: accuracy, coherence, harmlessness)",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Path behind a reverse proxy, as /annotate.")] = "",
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
    from jpo.errors import JpoError, MissingExtra
    from jpo.web.assignment import Rules
    from jpo.web.items import read_items

    rules = Rules(overlap, repeat, seed)
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise JpoError(f"--prefix: expected a path such as /annotate, got {prefix!r}")
    items = read_items(input)
    joint = sum(item.joint for item in items)
    gold = sum(item.gold is not None for item in items)
    typer.echo(f"{len(items)} items: {joint} joint, {len(items) - joint} conditional; {gold} of them gold")
    if items.repeated:
        typer.echo(f"{items.repeated} records repeat an item that stands before: they are asked once")
    if items.report.dropped:
        typer.echo(str(items.report))
    if dry_run:
        answers = (len(items) - gold) * overlap
        typer.echo(
            f"{answers} verdicts to give, beside {gold} gold items and a share of {repeat:g} repeated for each annotator"
        )
        return
    try:
        import uvicorn

        from jpo.web.annotate import Pages, build
    except ImportError as error:
        raise MissingExtra(f"jpo annotate needs {error.name}: pip install 'jpo[web]'") from None
    from jpo.web.project import GUIDELINE, Project
    from jpo.web.store import Store

    text = GUIDELINE
    if guideline is not None:
        with open(guideline, encoding="utf-8") as file:
            text = file.read().strip()
    store = Store(f"{output}.annotations.sqlite")
    project = Project(items, store, rules, text)
    open_to_all = host in LOOPBACK
    key = None if open_to_all else store.secret("key")
    links = {name: store.secret(f"link:{name}") for name in annotator or ()}
    pages = Pages(project, output=output, key=key, links=links, prefix=prefix)
    hosts = [*LOOPBACK, "[::1]"] if open_to_all else ["*"]
    config = uvicorn.Config(
        build(pages, hosts), host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=3,
        proxy_headers=False, limit_concurrency=512,
    )  # fmt: skip
    socket = config.bind_socket()
    shown = f"http://{'[::1]' if host == '::1' else host}:{socket.getsockname()[1]}{prefix}"
    query = f"?key={key}" if key else ""
    if not open_to_all:
        typer.echo(
            f"warning: everybody who reaches {host} can see these pages; only who has a link below can enter", err=True
        )
    for name, secret in links.items():
        typer.echo(f"{name}: {shown}/a/{secret}")
    if not links:
        typer.echo(f"annotate: {shown}/{query}")
    typer.echo(f"overview: {shown}/overview{query}")
    typer.echo(f"verdicts: {store.path}; records: {output}; Ctrl-C ends")
    try:
        uvicorn.Server(config).run(sockets=[socket])
    finally:
        count = project.write(output)
        store.close()
        typer.echo(f"{count} records in {output}")


def register(app: typer.Typer) -> None:
    """Adds `jpo annotate`."""
    app.command("annotate")(annotate)
