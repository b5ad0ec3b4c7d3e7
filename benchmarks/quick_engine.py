"""The engine with its long loops cut short, to see how much memory a run takes without waiting for its result.

    python -m benchmarks.quick_engine RUN_FOLDER LOCK_DESCRIPTOR

Every array that a real run makes is made here too; what is left out are repetitions: the other points of the searches,
and the products and the rounding of all but the first piece of each weight. The output is worth nothing, and is
verified all the same: it holds what this engine computed. `AWQ_TUI_TRACE`, a file, gets where the peak of each function
was.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from awq_engine import clip_search, error_feedback, linear_rounding, scale_search, two_sided_feedback, worker
from awq_engine.quantize import round_to_grid
from awq_engine.statistics import InputStatistics

SAMPLE_SECONDS = 0.005


def first_piece_only(self: InputStatistics, difference: Iterable[torch.Tensor]) -> float:
    """In the place of `InputStatistics.output_mse`."""
    losses = [float((rows @ self.gram).mul_(rows).sum()) for number, rows in enumerate(difference) if number == 0]
    return losses[0]


def shorten() -> None:
    assert all((scale_search.N_GRID, clip_search.STEPS_TOGETHER, clip_search.ROUNDS))
    scale_search.N_GRID = clip_search.STEPS_TOGETHER = 1
    clip_search.ROUNDS = 0
    InputStatistics.output_mse = first_piece_only  # type: ignore[method-assign]
    round_rows, done = error_feedback._round_rows, set[int]()

    def once(weight: torch.Tensor, order: torch.Tensor, factor: torch.Tensor, grids, spec) -> None:  # type: ignore[no-untyped-def]
        if factor.data_ptr() not in done:
            round_rows(weight, order, factor, grids, spec)
        done.add(factor.data_ptr())
        weight.copy_(round_to_grid(weight, grids, spec))

    error_feedback._round_rows = once
    tiles = two_sided_feedback._Tiles

    def last_waves(self) -> torch.Tensor:  # type: ignore[no-untyped-def]
        n_rows, n_columns = self.errors.shape[0] // 8, self.errors.shape[1] // 32
        for wave in range(n_rows + n_columns - 2, n_rows + n_columns - 6, -1):
            rows = range(max(0, wave - n_columns + 1), min(n_rows, wave + 1))
            self._round_wave([(self._rows(r), self._columns(wave - r)) for r in rows])
        return self.rounded.copy_(self.errors)

    tiles.round = last_waves  # type: ignore[method-assign]
    both = linear_rounding.round_with_two_sided_feedback_

    def on_the_grid(weight, statistics, grams, qparams, spec) -> torch.Tensor:  # type: ignore[no-untyped-def]
        both(weight, statistics, grams, qparams, spec)
        for rows in linear_rounding.row_slices(weight):
            weight[rows] = round_to_grid(weight[rows], qparams.of(rows), spec)
        return weight

    linear_rounding.round_with_two_sided_feedback_ = on_the_grid


def trace(path: Path) -> None:
    """Write the largest resident size seen in each function to `path`, once a second."""
    peaks: dict[str, int] = {}
    main, written = threading.main_thread().ident, time.monotonic()
    assert main is not None
    while True:
        time.sleep(SAMPLE_SECONDS)
        frame, names = sys._current_frames().get(main), []
        while frame is not None and len(names) < 4:
            if "awq_engine" in frame.f_code.co_filename:
                names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        where = " < ".join(names)
        peaks[where] = max(peaks.get(where, 0), resident)
        if time.monotonic() - written > 1:
            written = time.monotonic()
            rows = sorted(peaks.items(), key=lambda item: -item[1])
            path.write_text("".join(f"{size / 1e6:8.0f} {where}\n" for where, size in rows))


if __name__ == "__main__":
    shorten()
    if "AWQ_TUI_TRACE" in os.environ:
        threading.Thread(target=trace, args=[Path(os.environ["AWQ_TUI_TRACE"])], daemon=True).start()
    sys.exit(worker.main(sys.argv[1:]))
