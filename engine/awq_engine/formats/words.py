"""Small integers in 32-bit words: element `i` of a row is the bits `i * bits .. (i + 1) * bits - 1` of that row.

Every format packs this way, from the lowest bits up and without padding between elements (3-bit values cross words);
they differ in the dimension and the order of the elements only.
"""

from __future__ import annotations

import math
import sys

import torch

WORD_BITS = 32


def n_words(columns: int, bits: int) -> int:
    """Words of a row of `columns` elements, the last one padded with zeros."""
    return -(-columns * bits // WORD_BITS)


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [rows, columns] below 2**bits to int32 [rows, n_words(columns, bits)]."""
    elements, words = _cycle(bits)
    rows, columns = values.shape
    cycles = -(-columns // elements)
    padded = torch.nn.functional.pad(values, (0, cycles * elements - columns)).view(rows, cycles, elements)
    packed = torch.zeros(rows, cycles, words, dtype=torch.int32, device=values.device)
    for element in range(elements):  # one column a cycle at a time: the peak stays at the size of the result
        word, shift = divmod(element * bits, WORD_BITS)
        value = padded[:, :, element].to(torch.int32)
        packed[:, :, word] |= value << shift
        if shift + bits > WORD_BITS:
            packed[:, :, word + 1] |= value >> (WORD_BITS - shift)
    return packed.flatten(1)[:, : n_words(columns, bits)].contiguous()


def unpack_words(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """int32 [rows, n_words(columns, bits)] to uint8 [rows, columns]; `pack_words` undone."""
    unpack = _unpack_bytes if 8 % bits == 0 and sys.byteorder == "little" else _unpack_cycles
    return unpack(packed, bits)[:, :columns].contiguous()


def _unpack_bytes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Where no element crosses a byte: several times as fast as by words."""
    stored = packed.contiguous().view(torch.uint8)
    elements = [(stored >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(elements, dim=2).flatten(1)


def _unpack_cycles(packed: torch.Tensor, bits: int) -> torch.Tensor:
    elements, words = _cycle(bits)
    rows, cycles = packed.shape[0], -(-packed.shape[1] // words)
    padded = torch.nn.functional.pad(packed, (0, cycles * words - packed.shape[1])).view(rows, cycles, words)
    values = torch.empty(rows, cycles, elements, dtype=torch.uint8, device=packed.device)
    for element in range(elements):
        word, shift = divmod(element * bits, WORD_BITS)
        low = min(bits, WORD_BITS - shift)
        value = (padded[:, :, word] >> shift) & (2**low - 1)
        if low < bits:
            value |= (padded[:, :, word + 1] & (2 ** (bits - low) - 1)) << low
        values[:, :, element] = value.to(torch.uint8)
    return values.flatten(1)


def _cycle(bits: int) -> tuple[int, int]:
    """Elements, and the whole words they fill, after which the pattern repeats: (8, 1) for 4 bits, (32, 3) for 3."""
    common = math.gcd(bits, WORD_BITS)
    return WORD_BITS // common, bits // common
