"""Every way a run can fail, as one tree, each with the exit code the command line promises.

    AwqError                     1   our own bug, or a cause nobody foresaw
    ├── UsageError               2   an option or a combination of options that cannot work
    ├── BadInputError            2   a file, folder, model or text that cannot be used
    ├── VerificationError        1   what was written does not compute what was meant (our bug, found in time)
    ├── ResourceError            3   not enough memory or disk
    ├── NetworkError             4   the Hub: offline, unknown, gated, broken
    └── InterruptedRunError    130   cancelled or killed; can be resumed

A message is one or two plain sentences: what, where (file, tensor, numbers), what to do.
Standard library only: the app imports this module.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """What the `awq-tui` process returns; documented in the README and relied on by scripts."""

    OK = 0
    BUG = 1
    BAD_INPUT = 2
    NO_RESOURCES = 3
    NETWORK = 4
    INTERRUPTED = 130


class AwqError(Exception):
    """Base of every error we raise on purpose; `str(error)` is the sentence shown to the person."""

    exit_code: ExitCode = ExitCode.BUG


class UsageError(AwqError):
    """An option or a combination of options that cannot work."""

    exit_code = ExitCode.BAD_INPUT


class BadInputError(AwqError):
    """A file, folder, model or text that cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class VerificationError(AwqError):
    """The written checkpoint does not compute what the quantizer meant; it was not published."""

    exit_code = ExitCode.BUG


class ResourceError(AwqError):
    """Not enough memory or disk."""

    exit_code = ExitCode.NO_RESOURCES


class NetworkError(AwqError):
    """The Hub could not be reached, does not know the name, or wants a licence accepted first."""

    exit_code = ExitCode.NETWORK


class InterruptedRunError(AwqError):
    """The run stopped before its end and can be resumed."""

    exit_code = ExitCode.INTERRUPTED


_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
"""What torch says in a RuntimeError, by platform and device."""


def as_known_error(error: BaseException) -> AwqError | None:
    """The error as one of ours, if it is one or means one (disk or memory full); None for a bug."""
    if isinstance(error, AwqError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return ResourceError(f"The disk is full{where}; free some space and try again.")
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return ResourceError("There is not enough memory for this; use fewer or shorter samples, or another device.")
    return None


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
