"""What is measured on a machine is kept, and never stands in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from truth import random_weight

from awq_kernels import timing, tuning
from awq_kernels.launches import Launch
from awq_kernels.tiles import PLANES, pack_tiles

FAST, FASTER = Launch(8, 32, 4, 4, 3), Launch(8, 16, 8, 8, 4)


def test_measured_launches_are_kept_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "device.json"
    tuning.write_measured(file, {"one": FAST})
    tuning.write_measured(file, {"two": FASTER})
    assert tuning.read_measured(file).measured == {"one": FAST, "two": FASTER}
    assert [path.name for path in file.parent.iterdir()] == ["device.json"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"one": 3}', '{"one": {"tokens": 8}}'])
def test_a_damaged_file_is_like_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "device.json"
    if content is not None:
        file.write_text(content)
    assert tuning.read_measured(file).measured == {}
    tuning.write_measured(file, {"one": FAST})
    assert tuning.read_measured(file).measured == {"one": FAST}


def test_the_kernels_version_follows_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuning.kernel_version()
    monkeypatch.setattr(tuning, "SOURCES", tuning.SOURCES[:-1])
    assert tuning.kernel_version() != before


@pytest.mark.parametrize("block", [8, 16, 64])
@pytest.mark.parametrize("bits", PLANES)
def test_the_search_is_short_and_begins_with_what_ships(bits: int, block: int) -> None:
    tiles = pack_tiles(random_weight(64, 1024, 128, bits=bits))
    found = tuning.candidates(tiles, block)
    assert 2 <= len(found) <= 24
    assert len(set(found)) == len(found)
    assert all(launch.tokens >= block for launch in found)


def test_timing_takes_turns() -> None:
    called: list[int] = []
    calls = [lambda n=n: called.append(n) for n in range(3)]
    found = timing.time_calls(calls, torch.device("cpu"), at_least=0.0)
    assert found.seconds > 0
    assert called == [0, 1, 2] * (1 + timing.ROUNDS)


def test_copies_go_beyond_the_cache() -> None:
    device = torch.device("cpu")
    assert timing.copies_beyond_cache(1 << 30, device) == 1
    assert timing.copies_beyond_cache(1 << 20, device) >= 64
