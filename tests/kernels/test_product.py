"""The Triton kernels against float64: on a GPU where there is one, otherwise in Triton's interpreter.

The interpreter must be chosen before triton is imported for the first time, which other tests may have done:
`test_interpreted.py` starts a process of its own.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truth import FLOAT32_SUMS, best_error, random_tokens, random_weight, relative_error, truth

from awq_kernels import product, tuning
from awq_kernels.dequantize import dequantize
from awq_kernels.int_weight import IntWeight
from awq_kernels.launches import TABLE, Launch, Launches
from awq_kernels.plane import INTERPRETED, exactly
from awq_kernels.tiles import PLANES, join_tiles, pack_tiles, split_tiles

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(128, 512, 128), (72, 288, 32), (96, 192, 64), (65, 160, 160), (40, 96, 16), (70, 144, 48), (33, 216, 24)]
"""Whole and odd sizes, groups that fit planes, several to a plane's width, one to a row, and padded ones."""
SMALL = (72, 288, 32)


@pytest.fixture(autouse=True)
def _poison(nan_filled_outputs: None) -> None:
    pass


def check_error(y: torch.Tensor, x: torch.Tensor, weight: IntWeight, bias: torch.Tensor | None = None) -> None:
    """No further from float64 than the roundings that must be: of the result, beyond `MAX_TOKENS` of the weights."""
    n_tokens = x.shape[0]
    assert y.shape == (n_tokens, weight.out_features)
    assert y.dtype == x.dtype
    best = best_error(x, weight, bias, rounded_weights=n_tokens > product.MAX_TOKENS and x.dtype != torch.float32)
    assert relative_error(y, truth(x, weight, bias)) < best + FLOAT32_SUMS


def check(shape: tuple[int, int, int], bits: int, n_tokens: int, symmetric: bool) -> None:
    weight = random_weight(*shape, symmetric, bits)
    x = random_tokens(n_tokens, weight.in_features, torch.float16)
    check_error(product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE))), x, weight)


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(("shape", "n_tokens"), zip(SHAPES, (1, 2, 17, 3, 8, 9, 1), strict=True), ids=str)
def test_matches_float64(shape: tuple[int, int, int], bits: int, n_tokens: int) -> None:
    check(shape, bits, n_tokens, symmetric=False)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from(list(PLANES)),
    out_features=st.integers(1, 70),
    group_size=st.integers(8, 80),
    n_groups=st.integers(1, 3),
    symmetric=st.booleans(),
    n_tokens=st.sampled_from([1, 3, 8, 9, 65]),
)
def test_any_shape(
    bits: int, out_features: int, group_size: int, n_groups: int, symmetric: bool, n_tokens: int
) -> None:
    """Sizes that are a multiple of nothing: also one output, and prime groups."""
    check((out_features, group_size * n_groups, group_size), bits, n_tokens, symmetric)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from(list(PLANES)),
    out_features=st.integers(1, 200),
    group_size=st.integers(8, 200),
    n_groups=st.integers(1, 5),
    symmetric=st.booleans(),
    n_tokens=st.integers(1, 80),
)
def test_any_shape_at_length(
    bits: int, out_features: int, group_size: int, n_groups: int, symmetric: bool, n_tokens: int
) -> None:
    check((out_features, group_size * n_groups, group_size), bits, n_tokens, symmetric)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("n_tokens", [1, 2, 8, 11, 16, 33, 64, 65])
@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_combination(shape: tuple[int, int, int], bits: int, n_tokens: int, symmetric: bool) -> None:
    check(shape, bits, n_tokens, symmetric)


@pytest.mark.parametrize("bits", PLANES)
def test_symmetric_weights_have_no_zero_points_to_read(bits: int) -> None:
    weight = random_weight(*SMALL, symmetric=True, bits=bits)
    tiles = pack_tiles(weight.to(DEVICE))
    assert tiles.symmetric
    x = random_tokens(5, SMALL[1], torch.float16)
    check_error(product.matmul(x.to(DEVICE), tiles), x, weight)


@pytest.mark.parametrize(
    "launch", sorted({w for t in TABLE.values() for ws in t.values() for w in ws}, key=str), ids=str
)
def test_every_launch_that_ships(launch: Launch) -> None:
    """Slices that the inputs do not fill, a last block of tokens that is not full, a last tile that is not."""
    weight = random_weight(72, 288, 32)
    n_tokens = launch.tokens + 3
    x, bias = random_tokens(n_tokens, 288, torch.float16), random_tokens(1, 72, torch.float16)[0]
    y = product.fused(x.to(DEVICE), pack_tiles(weight.to(DEVICE)), bias.to(DEVICE), launch)
    check_error(y, x, weight, bias)


@pytest.mark.parametrize("n_tokens", [1, 70])
def test_leading_dimensions_and_bias(n_tokens: int) -> None:
    weight = random_weight(48, 128, 64)
    x, bias = random_tokens(2 * n_tokens, 128, torch.float16), random_tokens(1, 48, torch.float16)[0]
    y = product.matmul(x.view(2, n_tokens, 128).to(DEVICE), pack_tiles(weight.to(DEVICE)), bias.to(DEVICE))
    assert y.shape == (2, n_tokens, 48)
    check_error(y.flatten(0, 1), x, weight, bias)


def test_many_tokens_dequantize_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_kernels.product.CHUNK_WEIGHTS", 2 * 64 * 96)
    weight = random_weight(200, 96, 32)
    x, bias = random_tokens(70, 96, torch.float16), random_tokens(1, 200, torch.float16)[0]
    y = product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)), bias.to(DEVICE))
    check_error(y, x, weight, bias)


@pytest.mark.parametrize("bits", PLANES)
def test_float32_activations_keep_float32_accuracy(bits: int) -> None:
    weight = random_weight(72, 256, 128, bits=bits)
    x = random_tokens(5, 256, torch.float32)
    y = product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    check_error(y, x, weight)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float32])
def test_scales_are_taken_as_they_are(scale: torch.dtype, symmetric: bool) -> None:
    weight = random_weight(64, 256, 64, symmetric, scale_dtype=scale)
    x = random_tokens(2, 256, torch.float32)
    y = product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    check_error(y, x, weight)


def test_tokens_do_not_touch_each_other() -> None:
    """Tokens that are no numbers stay alone, although those beyond the last repeat it."""
    weight = random_weight(64, 128, 128)
    x = random_tokens(3, 128, torch.float16)
    x[2] = float("nan")
    y = product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    check_error(y[:2], x[:2], weight)
    assert y[2].isnan().all()


def test_strided_activations() -> None:
    """A slice of a wider tensor, as fused projections hand on, is read by its strides."""
    weight = random_weight(64, 128, 128)
    wide = random_tokens(4, 256, torch.float16)
    y = product.matmul(wide[:, 64:192].to(DEVICE), pack_tiles(weight.to(DEVICE)))
    check_error(y, wide[:, 64:192], weight)


def test_no_tokens() -> None:
    x = torch.zeros(0, 128, dtype=torch.float16, device=DEVICE)
    assert product.matmul(x, pack_tiles(random_weight(64, 128, 128).to(DEVICE))).shape == (0, 64)


def test_two_runs_give_the_same_bits() -> None:
    tiles = pack_tiles(random_weight(64, 512, 128).to(DEVICE))
    x = random_tokens(8, 512, torch.float16).to(DEVICE)
    assert torch.equal(product.matmul(x, tiles), product.matmul(x, tiles))


@pytest.mark.parametrize("n_tokens", [2, 70])
def test_joined_weights(n_tokens: int) -> None:
    """A part that lies in the middle of another's memory computes, and so does the whole."""
    weights = [random_weight(rows, 128, 64, seed=rows) for rows in (64, 128, 40)]
    whole = join_tiles([pack_tiles(weight.to(DEVICE)) for weight in weights])
    assert whole is not None
    x = random_tokens(n_tokens, 128, torch.float16)
    together = product.matmul(x.to(DEVICE), whole)
    rows = [64, 128, 40]
    for y, part, weight in zip(together.split(rows, dim=1), split_tiles(whole, rows), weights, strict=True):
        check_error(y, x, weight)
        check_error(product.matmul(x.to(DEVICE), part), x, weight)


def test_the_search_finds_a_launch_for_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = [Launch(8, 32, 2, 2, 2), Launch(8, 64, 1, 1, 2)]
    monkeypatch.setattr(tuning, "candidates", lambda tiles, block: launches)
    monkeypatch.setattr(tuning, "copies_beyond_cache", lambda nbytes, device: 2)
    tiles = pack_tiles(random_weight(64, 128, 64).to(DEVICE))
    key, found = tuning.tune(tiles, 2, torch.float16)
    assert found in launches
    assert Launches({key: found}).pick(tiles, 2, torch.float16) == found


@pytest.mark.parametrize("bits", PLANES)
def test_dequantize_is_exact_in_float32(bits: int) -> None:
    weight = random_weight(70, 144, 48, bits=bits)
    found = dequantize(pack_tiles(weight.to(DEVICE)), torch.float32)
    assert torch.equal(found.double().cpu(), truth(torch.eye(144), weight).T)


@triton.jit
def _bfloat16_bits_kernel(x_ptr, bits_ptr):
    i = tl.arange(0, 512)
    tl.store(bits_ptr + i, exactly(tl.load(x_ptr + i), tl.bfloat16).to(tl.int16, bitcast=True))


def test_integers_are_exact_in_bfloat16() -> None:
    """All that q - z can be."""
    x = torch.arange(-256, 256).half()
    bits = torch.empty(512, dtype=torch.int16, device=DEVICE)
    _bfloat16_bits_kernel[(1,)](x.to(DEVICE), bits)
    assert torch.equal(bits.cpu().view(torch.bfloat16), x.bfloat16())
    assert torch.equal(x.bfloat16().half(), x)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU computes with bfloat16")
def test_the_interpreter_refuses_bfloat16() -> None:
    """It would compute nonsense silently."""
    with pytest.raises(NotImplementedError, match="bfloat16"):
        product.matmul(torch.zeros(1, 128, dtype=torch.bfloat16), pack_tiles(random_weight(64, 128, 128)))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="the interpreter cannot compute with bfloat16")
@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("n_tokens", [1, 17, 70])
def test_bfloat16_matches_float64(n_tokens: int, bits: int) -> None:
    weight = random_weight(128, 512, 128, bits=bits)
    x = random_tokens(n_tokens, 512, torch.bfloat16)
    y = product.matmul(x.to(DEVICE), pack_tiles(weight.to(DEVICE)))
    check_error(y, x, weight)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs no assembly")
@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(128, 1024, 128), *SHAPES], ids=str)
def test_assembly_and_plain_triton_give_the_same_bits(
    shape: tuple[int, int, int], dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = pack_tiles(random_weight(*shape, bits=bits).to(DEVICE))
    x = random_tokens(5, shape[1], dtype).to(DEVICE)
    fast = product.matmul(x, tiles)
    monkeypatch.setattr(product, "unpack", lambda *_: None)
    assert torch.equal(fast, product.matmul(x, tiles))
