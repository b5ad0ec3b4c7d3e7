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


_OUT_OF_MEMORY = (
    "not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory",
    "resource temporarily unavailable", "can't start new thread",
)  # fmt: skip
"""What torch says in a RuntimeError, by platform and device, and a thread that has no room for its stack."""


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ESTALE, errno.ENXIO, errno.ENODEV,
)  # fmt: skip
_SYSTEM = (*_DISK_FULL, *_TOO_MANY_FILES, *_REFUSED)
"""What a file system answers for reasons of its own: none of it is a bug."""


def as_known_error(error: BaseException) -> AwqError | None:
    """The error as one of ours, if it is one or means one (what the system refuses, no memory); None for a bug."""
    if isinstance(error, AwqError):
        return error
    if is_panic(error):
        return BadInputError(f"A file is damaged in a way that its library does not survive: {last_clause(error)}")
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        return _about_system(error)
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return ResourceError("There is not enough memory for this; use fewer or shorter samples, or another device.")
    return None


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up on what it read: no `Exception`, so that nobody goes on by accident."""
    return type(error).__name__ == "PanicException"


def _about_system(error: OSError) -> AwqError:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in _DISK_FULL:
        return ResourceError(f"The disk is full{where}; free some space and try again.")
    if error.errno in _TOO_MANY_FILES:
        return ResourceError("Too many files are open in this process; raise the limit (ulimit -n) and try again.")
    return BadInputError(f"The system refused a file{where}: {error.strerror}.")


LONGEST_LINE = 300
"""Characters of another library's message."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…"


def last_clause(error: BaseException) -> str:
    """`first_line`, fit to end a sentence of ours."""
    line = first_line(error)
    return line if line[-1] in ".!?" else f"{line}."


def outcome(error: Exception) -> tuple[str, int]:
    """What a worker says of the error that ended its work, and its exit code."""
    if known := as_known_error(error):
        return str(known), int(known.exit_code)
    return f"A bug: {type(error).__name__}: {error}", int(ExitCode.BUG)
