"""What the hub, the network or the cache can refuse, in one line with the remedy.

The errors are told apart by huggingface_hub's classes and the HTTP status; its own messages are pages long.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jpo.errors import JpoError, MissingExtra

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # the HTTP clients of huggingface_hub's versions


def hub_library(what: str) -> Any:
    """huggingface_hub; MissingExtra, which says what could not be had and the command, where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra(
            f"{what}: no such path here; to look on the Hugging Face hub, install: pip install 'jpo[hub]'"
        ) from None
    return huggingface_hub


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_network(error: BaseException) -> bool:
    """Whether the hub could not be spoken to at all: refused, timed out, no name, a broken stream."""
    module = type(error).__module__.partition(".")[0]
    if _status(error) is not None:
        return False
    return module in _NETWORK or isinstance(error, (ConnectionError, TimeoutError))


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, too many requests, a fault of the server."""
    status = _status(error)
    return is_network(error) or status == 429 or (status is not None and status >= 500)


@contextmanager
def in_one_line(what: str, repo: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Errors of the hub inside the block become a JpoError: `what` (model 'USER/NAME'), the reason, the remedy."""
    try:
        yield
    except JpoError:
        raise
    except Exception as error:  # told apart below; what is none of them goes on as it is
        reason = _reason(error, repo, revision, writing)
        if reason is None:
            raise
        raise JpoError(f"{what}: {reason}") from error


def _reason(error: Exception, repo: str, revision: str | None, writing: bool) -> str | None:
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.HFValidationError):
        return f"the hub has no such names: {error}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's repository has no revision {revision or 'main'!r}; name a branch, a tag or a commit behind the @"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner admits people one by one: accept the terms at {endpoint()}/{repo}, then {LOGIN}"
    unknown = _status(error) == 401 and get_token() is None  # the hub does not tell strangers what is private
    if isinstance(error, errors.RepositoryNotFoundError) or unknown:
        return f"no such path here, and no such repository on {endpoint()} (check the name; if it is private, {LOGIN})"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the repository lacks a file: {str(error).splitlines()[-1]}"
    status = _status(error)
    if status is not None:
        return _reason_of_status(status, error, writing)
    cause: BaseException = error.__cause__ or error
    if is_network(error) or is_network(cause) or isinstance(error, errors.LocalEntryNotFoundError):
        detail = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        kept = "" if writing else "; what was fetched before is read with HF_HUB_OFFLINE=1"
        here = "" if writing else "no such path here, and "
        return f"{here}cannot reach {endpoint()} ({detail}); check the network, the proxy and HF_ENDPOINT{kept}"
    if "Consistency check failed" in str(error):
        return "the download broke off before the file was whole; the same command goes on where it stopped"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"the cache cannot be written ({error.strerror}: {error.filename}); set HF_HOME to a folder with room"
    return None


def _reason_of_status(status: int, error: Exception, writing: bool) -> str:
    if status == 401:
        return f"the hub refuses the token (401); {LOGIN} to a valid one"
    if status == 403:
        need = "write to this repository" if writing else "read this repository"
        return f"the hub says no (403): the token may not {need}; give it that right at {endpoint()}/settings/tokens"
    if status == 429:
        response: Any = getattr(error, "response", None)
        wait = response.headers.get("Retry-After")
        known = f"wait {wait} seconds" if wait and wait.isdigit() else "wait some minutes"
        return f"too many requests (429); {known} and repeat the command; with HF_TOKEN the limit is higher"
    if status >= 500:
        return f"the hub fails (HTTP {status}); repeat the command later; what was fetched before is read with HF_HUB_OFFLINE=1"
    text = str(error).strip().splitlines()
    return f"the hub refuses (HTTP {status}): {text[-1] if text else type(error).__name__}"
