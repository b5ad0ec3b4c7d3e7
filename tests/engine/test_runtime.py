"""Loading models in floats and AWQ checkpoints, and refusing broken ones by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rounded_checkpoint import (
    awq_settings,
    demo_model,
    edit_config,
    edit_tensors,
    round_plainly,
    write_awq_folder,
    write_float_folder,
)
from transformers import AutoModelForCausalLM

from awq_engine.errors import BadInputError, UsageError
from awq_engine.formats.awq import pack as pack_awq
from awq_engine.linear import QuantizedLinear
from awq_engine.runtime import LoadedModel, load_dequantized, load_model, pick_device
from awq_engine.spec import QuantSpec
from awq_kernels.reference import dequantize

TOKENS = torch.tensor([[1, 5, 9, 33, 2, 64, 7, 80]])
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_float_folder(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture
def awq_folder(float_folder: Path, tmp_path: Path) -> Path:
    return write_awq_folder(float_folder, tmp_path / "awq")


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(TOKENS).logits


def rounded_by_transformers(folder: Path, group_size: int = 32, symmetric: bool = False) -> torch.Tensor:
    """Logits of transformers' own model with every projection replaced by its rounded weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.data = dequantize(round_plainly(parameter.data, group_size, symmetric))
        elif parameter.ndim == 3:  # the experts of a mixture, fused
            experts = [dequantize(round_plainly(expert, group_size, symmetric)) for expert in parameter.data]
            parameter.data = torch.stack(experts)
    with torch.no_grad():
        return model(TOKENS).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_those_of_transformers_with_the_same_weights(
    float_folder: Path, tmp_path: Path, shards: int, symmetric: bool
) -> None:
    """The reference to float32 rounding, the int4 kernel to bfloat16 rounding."""
    folder = write_awq_folder(float_folder, tmp_path / "awq", symmetric=symmetric, shards=shards)
    expected = rounded_by_transformers(float_folder, symmetric=symmetric)
    assert relative(logits(load_model(folder, backend="reference")), expected) < 1e-6
    assert relative(logits(load_dequantized(folder)), expected) < 1e-6
    assert relative(logits(load_model(folder, backend="cpu")), expected) < 1e-2


def test_the_demo_model_after_plain_rounding(tmp_path: Path) -> None:
    """A trained model with tied embeddings, whole rows as groups."""
    folder = write_awq_folder(demo_model(), tmp_path / "awq", group_size=64)
    loaded = load_model(folder, backend="reference", device="cpu")
    assert relative(logits(loaded), rounded_by_transformers(demo_model(), 64)) < 1e-5
    assert loaded.context_length == 512
    assert loaded.bits_per_weight == pytest.approx(4 + (16 + 4) / 64)
    assert loaded.quantized == 7 * loaded.model.config.num_hidden_layers
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("a cat", add_special_tokens=False)) == "a cat"


def test_what_is_said_about_a_loaded_model(awq_folder: Path) -> None:
    loaded = load_model(awq_folder, device="cpu")
    assert (loaded.backend, loaded.reason) == ("cpu", "torch's int4 kernel in bfloat16")
    assert (loaded.quantized, loaded.dtype, loaded.notes) == (14, torch.float32, ())
    assert isinstance(loaded.model.get_submodule(Q_PROJ), QuantizedLinear)
    assert not any(p.is_meta for p in [*loaded.model.parameters(), *loaded.model.buffers()])


def test_a_model_in_floats(float_folder: Path) -> None:
    loaded = load_model(float_folder, device="cpu")
    assert (loaded.backend, loaded.quantized, loaded.bits_per_weight) == ("torch", 0, 16.0)
    plain = AutoModelForCausalLM.from_pretrained(float_folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(logits(loaded), plain(TOKENS).logits)


def test_biases_are_kept(tmp_path: Path) -> None:
    source = write_float_folder(tmp_path / "float", model_type="qwen2")
    model = AutoModelForCausalLM.from_pretrained(source)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(source)
    folder = write_awq_folder(source, tmp_path / "awq")
    loaded = load_model(folder, backend="reference")
    assert relative(logits(loaded), rounded_by_transformers(source)) < 1e-6
    assert loaded.model.get_submodule(Q_PROJ).bias is not None


def test_a_linear_the_backend_cannot_take_is_noted(tmp_path: Path) -> None:
    """One head of 24 numbers makes k_proj 24 outputs wide, which torch's kernel does not take."""
    source = write_float_folder(tmp_path / "float", num_key_value_heads=1, head_dim=24)
    folder = write_awq_folder(source, tmp_path / "awq")
    loaded = load_model(folder, backend="cpu")
    assert any("k_proj is computed by the reference" in note and "not 24" in note for note in loaded.notes)
    assert relative(logits(loaded), rounded_by_transformers(source)) < 1e-2


def test_a_quantized_head_of_its_own(tmp_path: Path) -> None:
    """Integers for `lm_head` count, also when config.json says that embeddings are tied."""
    source = write_float_folder(tmp_path / "float", tie_word_embeddings=False)
    folder = write_awq_folder(source, tmp_path / "awq")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    head = round_plainly(model.lm_head.weight.data, 32)
    parts = pack_awq(head, QuantSpec(4, 32, symmetric=False))
    packed: dict[str, torch.Tensor | None] = {f"lm_head.{key}": value for key, value in parts.items()}
    edit_tensors(folder, packed | {"lm_head.weight": None})
    edit_config(folder, tie_word_embeddings=True)
    for loaded in (load_model(folder, backend="reference"), load_dequantized(folder)):
        with torch.no_grad():
            hidden = loaded.model.model(TOKENS).last_hidden_state
        assert relative(logits(loaded), hidden @ dequantize(head).T) < 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{Q_PROJ}.qzeros": None}, f"{Q_PROJ}.qzeros is missing"),
        ({f"{Q_PROJ}.qweight": None}, f"tensor '{Q_PROJ}.(qzeros|scales)', which"),
        ({f"{Q_PROJ}.scales": torch.ones(4, 64).half()}, rf"{Q_PROJ}.scales has shape \[4, 64\]"),
        ({f"{Q_PROJ}.bias": torch.ones(64).half()}, f"tensor '{Q_PROJ}.bias', which"),
        ({"model.norm.weight": None}, "lack the tensor 'model.norm.weight'"),
        ({"model.norm.weight": torch.ones(32).half()}, r"model.norm.weight has shape \[32\].*describes \[64\]"),
        ({f"{Q_PROJ}.qweight": torch.zeros(128, 8, dtype=torch.int32)}, f"{Q_PROJ}.qzeros has shape"),
    ],
)
def test_broken_awq_weights_are_refused_by_name(
    awq_folder: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    edit_tensors(awq_folder, change)
    with pytest.raises(BadInputError, match=words):
        load_model(awq_folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, r"lack the tensor 'model\.norm\.weight'"),
        ({f"{Q_PROJ}.bias": torch.ones(64).half()}, f"tensor '{Q_PROJ}.bias', which"),
        ({"model.norm.weight": torch.ones(32).half()}, "cannot be loaded"),
    ],
)
def test_broken_float_weights_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None], words: str) -> None:
    folder = write_float_folder(tmp_path / "float")
    edit_tensors(folder, change)
    with pytest.raises(BadInputError, match=words):
        load_model(folder)


def test_tensors_of_parts_the_model_does_not_have_are_noted(awq_folder: Path) -> None:
    edit_tensors(awq_folder, {"model.layers.2.mtp.weight": torch.ones(4), "visual.blocks.0.weight": torch.ones(4)})
    assert any("no place for 2 tensors" in note for note in load_model(awq_folder).notes)


def test_a_folder_with_another_width_than_its_config(awq_folder: Path) -> None:
    edit_config(awq_folder, intermediate_size=96)
    with pytest.raises(BadInputError, match=r"down_proj holds 64 outputs and 128 inputs.*describes 64 and 96"):
        load_model(awq_folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized with bitsandbytes"),
        ({"version": "bitblas"}, "version bitblas"),
        ({"bits": 8}, "with 8 bits"),
        ({"group_size": 128}, "groups of 128"),
    ],
)
def test_other_quantizations_are_refused(awq_folder: Path, settings: dict[str, Any], words: str) -> None:
    edit_config(awq_folder, quantization_config=awq_settings(32) | settings)
    with pytest.raises(BadInputError, match=words):
        load_model(awq_folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32},
    ],
)
def test_other_tools_spellings_are_read(awq_folder: Path, settings: dict[str, Any]) -> None:
    edit_config(awq_folder, quantization_config=settings)
    assert load_model(awq_folder).quantized == 14


def test_quant_config_in_a_file_of_its_own(awq_folder: Path) -> None:
    edit_config(awq_folder, quantization_config=None)
    (awq_folder / "quant_config.json").write_text('{"zero_point": true, "q_group_size": 32, "w_bit": 4}')
    assert load_model(awq_folder).quantized == 14


def test_experts_stored_one_by_one_are_run(tmp_path: Path) -> None:
    sizes = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    source = write_float_folder(tmp_path / "float", model_type="qwen3_moe", head_dim=16, **sizes)
    folder = write_awq_folder(source, tmp_path / "awq")
    loaded = load_model(folder, backend="reference")
    assert loaded.quantized == 2 * (4 + 2 * 3)
    assert relative(logits(loaded), rounded_by_transformers(source)) < 1e-6


def test_devices_and_backends_that_are_not_there(awq_folder: Path) -> None:
    with pytest.raises(UsageError, match="no device"):
        pick_device("gpu please")
    with pytest.raises(UsageError, match="cuda:99 is not there"):
        pick_device("cuda:99")
    with pytest.raises(UsageError, match="triton does not run on cpu"):
        load_model(awq_folder, backend="triton", device="cpu")


def test_a_folder_without_a_tokenizer_says_so_when_it_is_asked_for(awq_folder: Path) -> None:
    loaded = load_model(awq_folder)
    with pytest.raises(BadInputError, match="no tokenizer"):
        _ = loaded.tokenizer
