"""jpo serve: a model and its adapters behind OpenAI's interface, and a page that sets them side by side."""

from __future__ import annotations

import os
import secrets
from typing import Annotated, Any

import typer

from jpo.cli.options import CacheDtype, Check, Host, Model, Port
from jpo.defaults import MAX_NEW_TOKENS


def serve(
    model: Model,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="NAME=PATH of an adapter over the model; may repeat. (NAME: the folder's)"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model itself. (default: the end of --model)"),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="JPO_API_KEY",
            help="What clients must send. (default: none on this machine alone, a new one with --host)",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="spaced, paper, tldr, raw, chat, or a text with {instruction}. (default: the adapter's; chat for the model)",
        ),
    ] = None,
    records: Annotated[
        str, typer.Option("--records", help="Preference records that the page writes; jpo train reads them.")
    ] = "comparisons.jsonl",
    compute: Annotated[
        str,
        typer.Option("--compute", help="float32, int16, bfloat16, bfloat16x2, bfloat16x3; auto: the fastest."),
    ] = "float32",
    storage: Annotated[str, typer.Option("--storage", help="auto, float32, bfloat16, q8_0.")] = "auto",
    streams: Annotated[int, typer.Option("--streams", help="Samples that decode side by side.")] = 64,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait; more are refused with 429.")] = 256,
    cache_tokens: Annotated[
        int | None,
        typer.Option("--cache-tokens", help="Tokens of all texts at once. (default: 1 GiB of keys and values)"),
    ] = None,
    cache_dtype: CacheDtype = "float32",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Of a chat answer that does not say.")
    ] = MAX_NEW_TOKENS,
    prefix: Annotated[str, typer.Option("--prefix", help="Path behind a reverse proxy, as /jpo.")] = "",
    check: Check = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be served; load no model.")] = False,
) -> None:
    """Serve a model and its adapters: OpenAI's interface, and a page.

    jpo serve --model smollm2-135m --adapter after=smollm2-jpo

    Any OpenAI client reaches it at http://127.0.0.1:8000/v1; the page of that address sets two models side by side and
    turns a comparison into a record for jpo train. Requests decode together and join at the next token. In float32 an
    answer does not depend on what else is served, bit for bit; the other compute types are faster, and there the number
    of streams may change a last digit. SIGTERM or Ctrl-C lets answers that are under way end for ten seconds.
    """
    from jpo.cache import check_type
    from jpo.errors import JpoError
    from jpo.web.listen import check_prefix, need_web
    from jpo.web.models import named_adapters

    need_web("jpo serve")
    check_prefix(prefix)
    check_type(cache_dtype)
    if max_new_tokens < 1:
        raise JpoError(f"--max-new-tokens: expected a positive whole number, got {max_new_tokens}")
    base = name or os.path.basename(os.path.normpath(model))
    adapters = named_adapters(adapter or (), base)
    typer.echo(f"models: {', '.join([base, *adapters])}")
    if dry_run:
        typer.echo(f"{streams} streams and {queue} waiting requests at {host}:{port}")
        return
    import jpo
    from jpo.web.models import Models

    lm = jpo.load(model, storage=storage, compute=compute, check=check)  # type: ignore[arg-type]
    options = {"streams": streams, "queue": queue, "cache_tokens": cache_tokens, "cache_dtype": cache_dtype}
    models = Models(lm, base, adapters, template=template, **options)
    try:
        _serve(models, host, port, api_key, prefix, max_new_tokens, records)
    finally:
        models.batcher.close()


def _serve(
    models: Any, host: str, port: int, api_key: str | None, prefix: str, max_new_tokens: int, records: str
) -> None:
    from jpo.web.compare import Page
    from jpo.web.listen import Listener, elsewhere, hosts, loopback
    from jpo.web.serve import Api, build

    key = api_key or (None if loopback(host) else secrets.token_urlsafe(24))
    api = Api(models, key, max_new_tokens)
    page = Page(models, records, key=key, prefix=prefix, max_new_tokens=max_new_tokens)
    app = build(api, hosts(host), prefix=prefix, pages=page.routes())
    listener = Listener(app, host, port, prefix, patience=10)
    if not loopback(host):
        typer.echo(f"warning: everybody who reaches {host} can ask; only who has the key below is answered", err=True)
    if key is not None and api_key is None:
        typer.echo(f"key: {key}")
    typer.echo(f"serve: {listener.url}/v1")
    typer.echo(f"page: {listener.url}/{f'?key={key}' if key and api_key is None else ''}; its records: {records}")
    if hint := elsewhere(host):
        typer.echo(hint)
    typer.echo("Ctrl-C ends")
    listener.run()


def register(app: typer.Typer) -> None:
    """Adds `jpo serve`."""
    app.command("serve")(serve)
