"""Amounts of memory as people write them, and hidden states on disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from awq_engine.errors import ResourceError, UsageError
from awq_engine.memory import available_bytes, parse_size, peak_resident_bytes
from awq_engine.spill import SpilledBatches, copied


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("4GiB", 4 * 2**30), ("1.5g", 15 * 10**8), ("512MB", 512 * 10**6), ("8000000", 8 * 10**6)],
)
def test_sizes(text: str, expected: int):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "4 gigabytes", "nan"])
def test_what_is_no_size(text: str):
    with pytest.raises(UsageError, match="is no amount of memory"):
        parse_size(text)


def test_what_the_system_says():
    """More is free than nothing, and this process has not been larger than the machine."""
    assert available_bytes() > 0
    peak = peak_resident_bytes()
    assert peak is None or 10 << 20 < peak < 1 << 50


def test_batches_come_back_bit_for_bit(tmp_path: Path):
    """In any order, after being replaced, and as tensors of their own; the file has no name to be left behind."""
    batches = [torch.randn(2, 3, 4), torch.randn(1, 3, 4)]
    store = copied(batches, lambda: SpilledBatches(tmp_path))
    store[0] = batches[0] + 1

    assert len(store) == 2
    assert torch.equal(store[1], batches[1])
    assert torch.equal(store[0], batches[0] + 1)
    assert [batch.shape[0] for batch in store] == [2, 1]
    store[0].zero_()
    assert torch.equal(store[0], batches[0] + 1)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = SpilledBatches(tmp_path)

    class FullFile:
        def seek(self, _: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_file", FullFile())
    with pytest.raises(ResourceError, match="too full for the hidden states"):
        store.append(torch.zeros(2))
