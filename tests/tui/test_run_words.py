"""What the run screen says about time and memory, on a run that was really made and on one of a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from random import Random

from awq_engine import events as e
from awq_engine.config import RunConfig
from awq_engine.state import LayerState, RunState, reduce, replay
from awq_tui.run_words import BLOCK_LINES, block_lines, memory_line
from awq_tui.widgets.glyphs import ASCII, UNICODE
from tests.tui.recorded_run import START, linear_quantized, opening

RECORDED = Path(__file__).parent / "files" / "run_of_four_blocks.jsonl"


def test_once_a_fifth_is_done_the_time_left_stays_true() -> None:
    """86 seconds on two cores that had other work too: calibration takes a fourth, the first block ends at a half."""
    records = [record for line in RECORDED.read_text().splitlines() if (record := e.Record.from_json(json.loads(line)))]
    start, end = records[0].time, records[-1].time
    state, ends = RunState(), []
    for record in records:
        state = reduce(state, record)
        left = state.eta(record.time)
        if left is not None and record.time - start > 0.2 * (end - start):
            ends.append((record.time + left - start) / (end - start))
    assert len(ends) > 20
    assert 0.9 < min(ends) <= max(ends) < 1.15
    steps = [abs(after - before) for before, after in itertools.pairwise(ends)]
    assert max(steps) < 0.1


def memory_of(held: list[tuple[int, int]], host_total: int, device_total: int) -> RunState:
    """After a linear for each pair of host and device bytes."""
    start, plan, *_ = opening(1, Path("out"), RunConfig("m", "out"))
    assert isinstance(plan, e.PlanReady)
    events: list[e.Event] = [start]
    events.append(dataclasses.replace(plan, host_total_bytes=host_total, device_total_bytes=device_total))
    done = linear_quantized(None, "mlp.up_proj", Random(0))
    events += [dataclasses.replace(done, host_bytes=host, device_bytes=device) for host, device in held]
    return replay(e.Record(number, START + number, event) for number, event in enumerate(events, start=1))


def test_memory_of_a_gpu_and_of_the_host() -> None:
    state = memory_of([(2_000_000_000, 3_000_000_000), (6_000_000_000, 12_000_000_000)], 64_000_000_000, 24_000_000_000)
    assert memory_line(state, UNICODE) == "GPU 12.0/24.0 GB ▁▄  host 6.0/64.0 GB ▁▁"
    assert memory_line(state, ASCII).isascii()


def test_memory_of_a_run_without_a_gpu_and_of_older_journals() -> None:
    state = memory_of([(800_000_000, 0)], 25_300_000_000, 0)
    assert memory_line(state, UNICODE) == "host 800 MB/25.3 GB ▁"
    assert memory_line(memory_of([(800_000_000, 0)], 0, 0), UNICODE) == "host 800 MB █"
    assert memory_line(memory_of([(0, 0)], 0, 0), UNICODE) == "about 1.9 GB host"
    assert memory_line(RunState(), UNICODE) == ""


def test_only_the_newest_figures_are_kept() -> None:
    state = memory_of([(number, 0) for number in range(1, 100)], 1000, 0)
    assert state.memory[-1] == (99, 0)
    assert len(state.memory) < 50


def test_of_a_block_with_many_layers_those_around_the_cursor_are_listed() -> None:
    layers = {name: LayerState(0, name, 8, 8) for name in (f"experts.{number}.up_proj" for number in range(100))}
    for chosen in ("experts.0.up_proj", "experts.57.up_proj", "experts.99.up_proj"):
        heading, *lines = block_lines(layers, chosen, ASCII)
        assert len(lines) == BLOCK_LINES
        assert [marked for _, marked in lines].count(True) == 1
        assert all(len(text) <= 38 for text, _ in [heading, *lines])
    assert len(block_lines({}, "", ASCII)) == 1
