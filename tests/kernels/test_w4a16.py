"""The Triton kernels against float64: on a GPU where there is one, else in the interpreter (see `conftest.py`)."""

from __future__ import annotations

import pytest
import torch
from truth import TOLERANCE, random_tokens, random_weight, relative_error, truth

from awq_kernels import w4a16
from awq_kernels.layout import pack_tiles

DEVICE = "cpu" if w4a16.INTERPRETED else "cuda"
SHAPES = [(64, 128, 128), (128, 512, 128), (72, 288, 32), (96, 192, 64), (65, 160, 160), (40, 96, 16), (256, 256, 256)]


@pytest.fixture(autouse=True)
def _poison(nan_filled_outputs: None) -> None:
    pass


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("n_tokens", [1, 3, 8, 17])
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES, ids=lambda v: str(v))
def test_matches_float64(out_features: int, in_features: int, group_size: int, n_tokens: int, symmetric: bool) -> None:
    """Odd and even sizes, every group size, one and several tokens."""
    weight = random_weight(out_features, in_features, group_size, symmetric)
    x = random_tokens(n_tokens, in_features, torch.float16)
    y = w4a16.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    assert y.shape == (n_tokens, out_features)
    assert y.dtype == torch.float16
    assert relative_error(y, truth(x, weight)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 99])
def test_splits_of_the_inputs_are_summed(splits: int) -> None:
    """Also with a remainder, and with more splits than there are tiles."""
    weight = random_weight(72, 512, 64)
    x, bias = random_tokens(3, 512, torch.float16), random_tokens(1, 72, torch.float16)[0]
    y = w4a16.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)), bias.to(DEVICE), splits)
    assert relative_error(y, truth(x, weight, bias)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("n_tokens", [1, 70])
def test_leading_dimensions_and_bias(n_tokens: int) -> None:
    weight = random_weight(48, 128, 64)
    x, bias = random_tokens(2 * n_tokens, 128, torch.float16), random_tokens(1, 48, torch.float16)[0]
    y = w4a16.matmul(x.view(2, n_tokens, 128).to(DEVICE), pack_tiles(weight.to(DEVICE)), bias.to(DEVICE))
    assert y.shape == (2, n_tokens, 48)
    assert relative_error(y.flatten(0, 1), truth(x, weight, bias)) < TOLERANCE[torch.float16]


def test_float32_activations_keep_float32_accuracy() -> None:
    weight = random_weight(72, 256, 128)
    x = random_tokens(5, 256, torch.float32)
    y = w4a16.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    assert relative_error(y, truth(x, weight)) < TOLERANCE[torch.float32]


def test_strided_activations() -> None:
    """A slice of a wider tensor, as fused projections hand on, is read by its strides."""
    weight = random_weight(64, 128, 128)
    wide = random_tokens(4, 256, torch.float16)
    y = w4a16.matmul(wide[:, 64:192].to(DEVICE), pack_tiles(weight.to(DEVICE)))
    assert relative_error(y, truth(wide[:, 64:192], weight)) < TOLERANCE[torch.float16]


def test_no_tokens() -> None:
    y = w4a16.matmul(
        torch.zeros(0, 128, dtype=torch.float16, device=DEVICE), pack_tiles(random_weight(64, 128, 128).to(DEVICE))
    )
    assert y.shape == (0, 64)


@pytest.mark.parametrize("splits", [1, 4])
def test_two_runs_give_the_same_bits(splits: int) -> None:
    tiles = pack_tiles(random_weight(128, 512, 128).to(DEVICE))
    x = random_tokens(8, 512, torch.float16).to(DEVICE)
    assert torch.equal(w4a16.matmul(x, tiles, splits=splits), w4a16.matmul(x, tiles, splits=splits))


def test_dequantize_is_exact_in_float32() -> None:
    weight = random_weight(72, 288, 32)
    found = w4a16.dequantize(pack_tiles(weight.to(DEVICE)), torch.float32)
    expected = truth(torch.eye(288), weight).T
    assert torch.equal(found.double().cpu(), expected)


@pytest.mark.skipif(not w4a16.INTERPRETED, reason="a GPU computes with bfloat16")
def test_the_interpreter_refuses_bfloat16() -> None:
    """It would compute nonsense silently."""
    with pytest.raises(NotImplementedError, match="bfloat16"):
        w4a16.matmul(torch.zeros(1, 128, dtype=torch.bfloat16), pack_tiles(random_weight(64, 128, 128)))


@pytest.mark.skipif(w4a16.INTERPRETED, reason="the interpreter cannot compute with bfloat16")
@pytest.mark.parametrize("n_tokens", [1, 17, 70])
def test_bfloat16_matches_float64(n_tokens: int) -> None:
    weight = random_weight(128, 512, 128)
    x = random_tokens(n_tokens, 512, torch.bfloat16)
    y = w4a16.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    assert relative_error(y, truth(x, weight)) < TOLERANCE[torch.bfloat16]
