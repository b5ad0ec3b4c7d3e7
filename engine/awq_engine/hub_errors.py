"""What went wrong between here and the Hugging Face Hub, as one of our errors with one sentence.

Never shows a token: only the repository's name, the address of the Hub and status codes go into a message. Standard
library only until an error is there to be described: the app imports this module.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from awq_engine.errors import AwqError, NetworkError, ResourceError
from awq_engine.sanitize import redacted

if TYPE_CHECKING:
    import httpx2

LOG_IN = "`hf auth login`"


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure of a Hub call about `repo` into an `AwqError`; our own errors and bugs pass through."""
    try:
        _bound_silence()
        yield
    except AwqError:
        raise
    except Exception as error:
        described = describe(error, repo, revision)
        if described is None:
            raise
        raise described from error


PATIENCE = 6
"""Times what the Hub's client waits for a piece of a file (`HF_HUB_DOWNLOAD_TIMEOUT`): a minute in all."""


def _bound_silence() -> None:
    """The Hub's client waits for ever for most answers, and a connection can fall silent without breaking."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _with_end not in hooks:
        hooks.append(_with_end)


def _with_end(request: httpx2.Request) -> None:
    from huggingface_hub import constants

    longest = PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT
    waits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {what: longest if wait is None else wait for what, wait in waits.items()}


def describe(error: BaseException, repo: str, revision: str | None = None) -> AwqError | None:
    """`error` as a `NetworkError` or `ResourceError` with its sentence; None when the Hub has nothing to do with it."""
    for cause in _causes(error):
        if sentence := _about_repository(cause, repo, revision):
            return NetworkError(sentence)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"The disk is full while downloading {repo}; free some space and try again.")
        if sentence := _about_connection(cause, repo):
            return NetworkError(sentence)
    if _is_hub_error(error):
        return NetworkError(_UNKNOWN.format(repo=repo, kind=type(error).__name__))
    return NetworkError(_MISUNDERSTOOD.format(repo=repo)) if _raised_by_client(error) else None


_UNKNOWN = "The Hub could not deliver {repo} ({kind}); try again later, or use local files."

_MISUNDERSTOOD = "The Hub's reply about {repo} cannot be understood; is a proxy or login page in between?"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The root cause first: huggingface_hub wraps an offline error in a `LocalEntryNotFoundError`."""
    chain = [error]
    while chain[-1].__cause__ is not None and len(chain) < 10:
        chain.append(chain[-1].__cause__)
    return reversed(chain)


def _about_repository(error: BaseException, repo: str, revision: str | None) -> str | None:
    """What the Hub said about this repository. A gated repository is a subclass of one not found: it goes first."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{redacted(constants.ENDPOINT)}/{repo}"
        return f"{repo} is gated: accept its licence at {page}, log in with {LOG_IN}, and try again."
    if isinstance(error, errors.DisabledRepoError):
        return f"The Hub has disabled {repo}; choose another."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {repo} on the Hub, or it is private: check the name, or log in with {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision '{revision or 'main'}'; its page on the Hub lists the branches and tags."
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return f"{repo} on the Hub lacks a file that it lists; try again, or choose another revision."
    if isinstance(error, errors.HfHubHTTPError):
        return _about_status(error.response, repo)
    return None


def _about_status(response: httpx2.Response, repo: str) -> str | None:
    status = response.status_code
    if status == 401 and _logged_in():
        return f"The Hub refused the stored login; log in again with {LOG_IN}."
    if status == 403:
        return f"The Hub does not let this login use {repo} so; ask its owner, or log in as someone else with {LOG_IN}."
    if status in (401, 404):
        return f"There is no {repo} on the Hub, or it is private: check the name, or log in with {LOG_IN}."
    if status == 429:
        wait = (
            f"{seconds} seconds" if (seconds := response.headers.get("Retry-After", "")).isdecimal() else "some minutes"
        )
        return f"The Hub got too many requests from here; wait {wait}, or log in with {LOG_IN} for a higher limit."
    if status >= 500:
        return f"The Hub has trouble of its own (status {status}); try again later."
    return None


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _about_connection(error: BaseException, repo: str) -> str | None:
    import httpx2
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"Offline mode is on (HF_HUB_OFFLINE) and {repo} is not in the cache; unset it, or use local files."
    if isinstance(error, httpx2.TimeoutException):
        return f"The Hub at {redacted(constants.ENDPOINT)} did not answer in time; check the network and try again."
    if isinstance(error, httpx2.ProxyError | httpx2.ConnectError | ConnectionError):
        return f"The Hub at {redacted(constants.ENDPOINT)} cannot be reached; check the network, or use local files."
    if isinstance(error, httpx2.TransportError):
        return f"The connection to the Hub broke while fetching {repo}; try again, what has arrived is kept."
    if isinstance(error, OSError) and str(error).startswith("Consistency check"):
        return f"A file of {repo} did not arrive as long as the Hub says it is; try again, what has arrived is kept."
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"Only a part of {repo} is in the cache and the Hub cannot be reached; try again with a network."
    if isinstance(error, ValueError) and not isinstance(error, errors.HFValidationError):
        return _MISUNDERSTOOD.format(repo=repo)
    return None


_CLIENTS = ("huggingface_hub", "httpx2", "hf_xet")


def _is_hub_error(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _CLIENTS


def _raised_by_client(error: BaseException) -> bool:
    """Whether a client library stumbled over a reply of a shape that it does not check."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return isinstance(error, _STUMBLES) and any(name.split(".")[0] in _CLIENTS for name in modules)


_STUMBLES = (AssertionError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError)
