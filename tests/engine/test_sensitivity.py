"""Gradients at the outputs of linears, and rounding with feedback along both sides, against brute force."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from awq_engine.checkpoint import read_checkpoint
from awq_engine.error_feedback import DAMPING, round_with_feedback_
from awq_engine.quantize import QParams, choose_qparams, group_ranges, round_to_grid
from awq_engine.sensitivity import Sensitivity, measure_sensitivity
from awq_engine.skeleton import build_skeleton
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics
from awq_engine.two_sided_feedback import OUTPUT_DAMPING, round_with_two_sided_feedback_
from tests.engine.tiny_model import write_tiny_model

LINEARS = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]


def correlated(n_rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(n_rows, width, generator=generator) @ (mix + 0.2 * torch.eye(width))


def gram(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows)


def of_inputs(width: int, seed: int) -> InputStatistics:
    x = correlated(4 * width, width, seed)
    return InputStatistics(gram(x), x.abs().mean(0), len(x))


def price(error: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor) -> float:
    """tr(M E G E^T)."""
    return float((outputs @ error @ inputs * error).sum())


def test_both_sides_beat_one_at_the_price_they_are_made_for():
    weight, stats, spec = correlated(40, 64, 1), of_inputs(64, 2), QuantSpec(4, 32, False)
    outputs = gram(correlated(400, 40, 3))
    qparams = choose_qparams(*group_ranges(weight, spec), spec)

    along_inputs = round_with_feedback_(weight.clone(), stats, qparams, spec)
    both = round_with_two_sided_feedback_(weight.clone(), stats, [outputs], qparams, spec)

    before, after = (price(rounded - weight, outputs, stats.gram) for rounded in (along_inputs, both))
    assert after < 0.85 * before


@settings(max_examples=25)
@given(
    out_features=st.integers(1, 37), groups=st.integers(1, 3), bits=st.sampled_from([2, 3, 4, 8]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_outputs_that_do_not_matter_to_each_other(out_features: int, groups: int, bits: int, seed: int):
    """With a diagonal M there is nothing to pass on between rows: what is left is plain error feedback, on the grid."""
    spec = QuantSpec(bits, 24, False)
    weight, stats = correlated(out_features, 24 * groups, seed), of_inputs(24 * groups, seed + 1)
    qparams = choose_qparams(*group_ranges(weight, spec), spec)

    rounded = round_with_two_sided_feedback_(weight.clone(), stats, [torch.eye(out_features)], qparams, spec)

    torch.testing.assert_close(rounded, round_to_grid(rounded, qparams, spec))
    plain = round_with_feedback_(weight.clone(), stats, qparams, spec)
    assert (rounded != plain).float().mean() <= 0.01  # a tie may fall either way when sums run in another order


def test_two_sided_feedback_is_the_recursion_it_says(monkeypatch: pytest.MonkeyPatch):
    """Against the definition, one weight after the other; tiles of one row see all the others."""
    monkeypatch.setattr("awq_engine.two_sided_feedback.ROW_TILE", 1)
    weight, stats, spec = correlated(9, 40, 5).double(), of_inputs(40, 6), QuantSpec(4, 40, False)
    outputs = gram(correlated(90, 9, 7))
    qparams = choose_qparams(*group_ranges(weight.float(), spec), spec)

    rounded = round_with_two_sided_feedback_(weight.clone().float(), stats, [outputs], qparams, spec)

    expected = recursion(weight, stats.gram.double(), outputs.double(), qparams, spec)
    assert (rounded != expected.float()).float().mean() <= 0.01


def recursion(
    weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    def factor(matrix: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
        order = matrix.diagonal().argsort()
        damped = matrix[order][:, order] + damping * matrix.diagonal().mean() * torch.eye(len(matrix))
        upper = torch.linalg.cholesky(damped).T
        return order, upper / upper.diagonal()[:, None]

    rows, a = factor(outputs, OUTPUT_DAMPING)
    columns, b = factor(inputs, DAMPING)
    w = weight[rows][:, columns]
    error, miss, result = torch.zeros_like(w), torch.zeros_like(w), torch.empty_like(w)
    for i in reversed(range(len(rows))):
        for j in reversed(range(len(columns))):
            base = w[i, j] + a[i, i + 1 :] @ error[i + 1 :, j]
            target = base + miss[i, j + 1 :] @ b[j, j + 1 :]
            scale, zero = qparams.scale[rows[i], 0].double(), qparams.zero_point[rows[i], 0].double()
            q = ((target / scale).round() + zero).clamp(0, spec.levels)
            result[i, j] = (q - zero) * scale
            error[i, j], miss[i, j] = w[i, j] - result[i, j], base - result[i, j]
    unsorted = torch.empty_like(w)
    unsorted[rows[:, None], columns] = result
    return unsorted


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", num_hidden_layers=3)


def measure(model: Path, ids: torch.Tensor, folder: Path) -> Sensitivity:
    with torch.no_grad():
        return measure_sensitivity(build_skeleton(read_checkpoint(model)), ids, folder, 0, lambda done, total: None)


def test_gradients_are_those_of_the_whole_model(model: Path, tmp_path: Path):
    """Carried down block by block, they are what one backward pass through the whole model finds."""
    ids = torch.randint(3, 2000, (5, 24), generator=torch.Generator().manual_seed(0))
    skeleton = build_skeleton(read_checkpoint(model))
    sensitivity = measure(model, ids, tmp_path / "gradients")
    with torch.no_grad(), skeleton.loaded_block(1) as block:
        found = sensitivity.output_grams(block, 1, LINEARS)

    expected = whole_model_grams(model, ids)
    for name in LINEARS:
        (gram,) = found.get(name, torch.device("cpu"))
        torch.testing.assert_close(gram, expected[name], rtol=0.03, atol=0.01 * float(expected[name].max()))


def whole_model_grams(model: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    outputs: dict[str, torch.Tensor] = {}
    for name in LINEARS:
        whole.model.layers[1].get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
    generator = torch.Generator().manual_seed(0)
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in LINEARS}
    for row in ids.split(1):
        log_p = whole(input_ids=row).logits[0].log_softmax(-1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        for name, g in zip(
            LINEARS, torch.autograd.grad(log_p.gather(-1, drawn).sum(), [outputs[n] for n in LINEARS]), strict=True
        ):
            gradients[name].append(g[0])
    return {name: gram(torch.cat(rows)) for name, rows in gradients.items()}


def test_gradients_on_disk_are_not_made_again(model: Path, tmp_path: Path):
    """An interrupted pass starts over; a finished one is used as it is."""
    ids = torch.randint(3, 2000, (2, 16))
    folder = tmp_path / "gradients"
    measure(model, ids, folder)
    first = {file: file.read_bytes() for file in folder.iterdir()}
    (folder / "00000.gradient.safetensors").unlink()

    measure(model, ids, folder)
    assert {file: file.read_bytes() for file in folder.iterdir()} == first

    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    measure(model, ids, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_wide_outputs_in_blocks(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks are the diagonal blocks of the whole matrix."""
    ids = torch.randint(3, 2000, (2, 16))
    sensitivity, cpu = measure(model, ids, tmp_path / "gradients"), torch.device("cpu")
    skeleton = build_skeleton(read_checkpoint(model))
    with torch.no_grad(), skeleton.loaded_block(0) as block:
        (whole,) = sensitivity.output_grams(block, 0, ["mlp.gate_proj"]).get("mlp.gate_proj", cpu)
        monkeypatch.setattr("awq_engine.sensitivity.OUTPUT_BLOCK", 48)
        blocks = sensitivity.output_grams(block, 0, ["mlp.gate_proj"]).get("mlp.gate_proj", cpu)

    assert [len(block) for block in blocks] == [48, 48, 32]
    torch.testing.assert_close(blocks[1], whole[48:96, 48:96])


def test_many_linears_in_several_passes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where not all Gram matrices fit into memory, the linears take turns; the numbers are the same."""
    sensitivity, cpu = measure(model, torch.randint(3, 2000, (2, 16)), tmp_path / "gradients"), torch.device("cpu")
    skeleton = build_skeleton(read_checkpoint(model))
    with torch.no_grad(), skeleton.loaded_block(0) as block:
        together = sensitivity.output_grams(block, 0, LINEARS)
        monkeypatch.setattr("awq_engine.sensitivity.GRAM_BYTES", 4 * 64 * 64)
        apart = sensitivity.output_grams(block, 0, LINEARS)

    for name in LINEARS:
        assert torch.equal(together.get(name, cpu)[0], apart.get(name, cpu)[0])
    apart.drop(LINEARS[:1])
    assert LINEARS[0] not in apart
    assert LINEARS[0] in together
