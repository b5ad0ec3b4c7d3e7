"""The process that fetches a model: `python -m awq_engine.download_worker ORG/NAME LOCK_FD`.

The lock is inherited and held to the end. A stop ends the process at once, wherever the Hub's client is: files that are
complete are kept, and the next process fetches the others. (The client has not gone on within a file since it gives
every attempt a file of its own; what this one leaves is deleted.)
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

from awq_engine.downloads import Download, report_download, stop_requested
from awq_engine.errors import ExitCode, outcome
from awq_engine.journal import throttled
from awq_engine.models import HubId, parse_model, resolve_model

INTERVAL = 0.2
"""Seconds between two looks for the wish to stop."""


def main(argv: list[str]) -> int:
    """Fetch the model `argv[0]`; what goes wrong is said in the download's state."""
    spec = argv[0]
    os.set_inheritable(int(argv[1]), False)
    now = [Download(spec)]
    threading.Thread(target=_end_when_asked, args=(now, _partial_files(spec)), daemon=True).start()

    def show(done: int, total: int) -> None:
        now[0] = replace(now[0], done=done, total=total)
        report_download(now[0])

    report = throttled(show)
    try:
        resolve_model(spec, lambda done, total, _: report(done, total))
    except Exception as error:
        traceback.print_exc()
        words, code = outcome(error)
        report_download(replace(now[0], error=words))
        return code
    report_download(replace(now[0], done=now[0].total, finished=True))
    return int(ExitCode.OK)


def _partial_files(spec: str) -> set[Path]:
    """In the Hub's cache, of this model."""
    from huggingface_hub import constants

    target = parse_model(spec)
    if not isinstance(target, HubId):
        return set()
    name = "--".join(["models", *target.repo.split("/")])
    return set((Path(constants.HF_HUB_CACHE) / name / "blobs").glob("*.incomplete"))


def _end_when_asked(now: list[Download], others: set[Path]) -> None:
    """At a stop: delete our own partial files, and end."""
    while not stop_requested(now[0].spec):
        time.sleep(INTERVAL)
    for path in _partial_files(now[0].spec) - others:
        path.unlink(missing_ok=True)
    report_download(replace(now[0], error="Stopped; files that are complete are kept, d fetches the others."))
    os._exit(int(ExitCode.INTERRUPTED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
