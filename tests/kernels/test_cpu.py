"""torch's int4 kernel for the CPU, behind our own integers."""

from __future__ import annotations

import pytest
import torch
from truth import TOLERANCE, random_tokens, random_weight, relative_error, truth

from awq_kernels.cpu import JOINED_ROWS, MAX_TOKENS, join, matmul, obstacle, pack_cpu, split

FEW = TOLERANCE[torch.bfloat16] * 2
"""Activations, scales and zero points are rounded to bfloat16 as well as the result."""


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("n_tokens", [1, 3, 17, MAX_TOKENS])
@pytest.mark.parametrize(("in_features", "group_size"), [(128, 128), (288, 32), (192, 64), (512, 256)])
def test_few_tokens_match_float64(in_features: int, group_size: int, n_tokens: int, symmetric: bool) -> None:
    weight = random_weight(48, in_features, group_size, symmetric)
    x = random_tokens(n_tokens, in_features, torch.float32)
    y = matmul(x, pack_cpu(weight))
    assert y.dtype == torch.float32
    assert relative_error(y, truth(x, weight)) < FEW


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_many_tokens_are_computed_in_float32(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the weight is dequantized in several pieces, the last one smaller."""
    monkeypatch.setattr("awq_kernels.cpu.CHUNK_WEIGHTS", 20 * 384)
    weight = random_weight(48, 384, group_size)
    x, bias = random_tokens(MAX_TOKENS + 1, 384, torch.float32), random_tokens(1, 48, torch.float32)[0]
    assert relative_error(matmul(x, pack_cpu(weight), bias), truth(x, weight, bias)) < TOLERANCE[torch.float32]


def test_shape_dtype_and_bias() -> None:
    weight = random_weight(16, 64, 32)
    x, bias = random_tokens(6, 64, torch.float16), random_tokens(1, 16, torch.float16)[0]
    y = matmul(x.view(2, 3, 64), pack_cpu(weight), bias)
    assert y.shape == (2, 3, 16)
    assert y.dtype == torch.float16
    assert relative_error(y.flatten(0, 1), truth(x, weight, bias)) < FEW
    assert matmul(x[:0], pack_cpu(weight)).shape == (0, 16)


@pytest.mark.parametrize(
    ("out_features", "group_size", "bits", "words"),
    [(24, 32, 4, "16 outputs, not 24"), (32, 16, 4, "inputs, not 16"), (32, 32, 8, "4 bits, not 8")],
)
def test_what_does_not_fit_is_said(out_features: int, group_size: int, bits: int, words: str) -> None:
    weight = random_weight(out_features, 64, group_size, bits=bits)
    assert words in str(obstacle(weight))
    with pytest.raises(ValueError, match=words):
        pack_cpu(weight)


@pytest.mark.parametrize("n_tokens", [1, 5, MAX_TOKENS + 1])
@pytest.mark.parametrize("rows", [(128, 64, 64), (64, 16), (192, 320, 48)])
def test_joined_weights_give_the_same_numbers(rows: tuple[int, ...], n_tokens: int) -> None:
    """Bit for bit: of all at once, and of each part read from the joined memory."""
    weights = [pack_cpu(random_weight(n, 256, 64)) for n in rows]
    x = random_tokens(n_tokens, 256, torch.float32)
    alone = [matmul(x, weight) for weight in weights]
    whole = join(weights)
    assert whole is not None
    assert torch.equal(matmul(x, whole), torch.cat(alone, dim=1))
    for part, expected in zip(split(whole, weights), alone, strict=True):
        assert torch.equal(matmul(x, part), expected)
        assert part.packed.untyped_storage().data_ptr() == whole.packed.untyped_storage().data_ptr()


def test_weights_that_cannot_be_joined_are_not() -> None:
    whole, part = random_weight(JOINED_ROWS, 256, 64), random_weight(16, 256, 64)
    assert join([pack_cpu(part), pack_cpu(whole)]) is None, "the first is no whole block"
    assert join([pack_cpu(whole), pack_cpu(random_weight(64, 256, 32))]) is None


@pytest.mark.parametrize("n_tokens", [3, 200])
def test_transposed_activations(n_tokens: int) -> None:
    """As a mixer of state spaces hands them on: channels first."""
    weight = random_weight(64, 128, 64)
    x = random_tokens(128, n_tokens, torch.float32).T
    assert relative_error(matmul(x, pack_cpu(weight)), truth(x, weight)) < FEW
