"""The `awq-tui` command: the app where there is a terminal for it, the headless command line everywhere else.

Only what is asked for is imported: the command line's modules are a tenth of the time to the app's first picture.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from awq_engine.errors import AwqError, ExitCode
from awq_engine.sanitize import plain, redacted


def main(argv: Sequence[str] | None = None) -> int:
    """`awq-tui` opens the app, and `awq-tui demo` opens it on that run, in a terminal; the rest is `awq_engine.cli`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the Hub is asked for what a person wants, and no more
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["demo"] and _has_terminal():
        return _demo_in_app()
    if not arguments and _has_terminal():
        return _open_app()
    from awq_engine import cli

    if arguments:
        return cli.main(arguments)
    print(cli.build_parser().format_help(), file=sys.stderr)
    print("awq-tui: the app needs a terminal; give one of the commands above.", file=sys.stderr)
    return ExitCode.BAD_INPUT


def _has_terminal() -> bool:
    """Whether a person can see and steer the app."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _open_app(run_id: str | None = None) -> int:
    gc.disable()  # until the first picture: what is imported is never garbage, and looking for some takes a tenth
    from awq_tui.app import main as open_app

    return open_app(run_id)


def _demo_in_app() -> int:
    from awq_engine.demo import start_demo

    try:
        run, engine = start_demo()
    except AwqError as error:
        print(f"awq-tui: {plain(redacted(str(error)))}", file=sys.stderr)
        return error.exit_code
    try:
        return _open_app(run.id)
    finally:
        engine.poll()


if __name__ == "__main__":
    sys.exit(main())
