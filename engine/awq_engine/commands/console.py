"""Where commands write: results to stdout, everything about the way there to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from awq_engine.sanitize import one_line, plain


def note(line: str) -> None:
    """A line about progress, on stderr; control characters in it (names of files, say) never reach the terminal."""
    print(plain(line), file=sys.stderr, flush=True)


def phases() -> Callable[[str, int, int], None]:
    """A progress callback that names each phase once, on stderr."""
    seen: set[str] = set()

    def report(phase: str, done: int, total: int) -> None:
        if phase not in seen:
            seen.add(phase)
            note(phase)

    return report


def result(text: str) -> None:
    """A result for people, on stdout."""
    print(text, flush=True)


def result_json(data: dict[str, Any]) -> None:
    """The one JSON object a `--json` command prints, on stdout; JSON has no word for a number that is not finite."""
    print(json.dumps(_finite(data), ensure_ascii=True, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Aligned columns under a header; columns named in `right` (space-separated) end flush."""
    cells = [[one_line(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = [name in right.split() for name in header]
    lines = (
        "  ".join(
            cell.rjust(width) if end else cell.ljust(width) for cell, width, end in zip(row, widths, flush, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
