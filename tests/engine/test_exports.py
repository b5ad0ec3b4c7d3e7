"""GGUF files and MLX folders hold the same integers; llama.cpp and MLX compute what we compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from foreign_environment import run_in
from rounded_checkpoint import demo_model, edit_config, round_plainly, write_awq_folder, write_float_folder
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from awq_engine.cli import main
from awq_engine.errors import BadInputError, UsageError
from awq_engine.exports.exported import Exported
from awq_engine.exports.gguf_blocks import blocks_for, fallback_for, pack, worst_error
from awq_engine.exports.gguf_file import export_gguf
from awq_engine.exports.gguf_metadata import Shape, rope_factors
from awq_engine.exports.mlx_folder import export_mlx
from awq_engine.runtime import load_dequantized
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama 3 positions": {"rope_parameters": LLAMA3, "head_dim": 32},
    "mistral": {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "rope_parameters": YARN},
}


def quantized(folder: Path, symmetric: bool = False, **config: Any) -> Path:
    """A tiny random model in AWQ's format, with the demo model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    source = write_float_folder(folder / "float", **{"vocab_size": 2048, "max_position_embeddings": 128, **config})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(demo_model() / name, source / name)
    return write_awq_folder(source, folder / "awq", symmetric=symmetric)


def to_gguf(source: Path, output: Path, overwrite: bool = False) -> Exported:
    return export_gguf(source, output, overwrite=overwrite, progress=lambda phase, done, total: None)


def to_mlx(source: Path, output: Path) -> Exported:
    return export_mlx(source, output, progress=lambda phase, done, total: None)


def read_gguf(file: Path) -> dict[str, torch.Tensor]:
    found = gguf.GGUFReader(file).tensors
    return {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in found}


def random_weight(bits: int, group_size: int, symmetric: bool, columns: int = 128, seed: int = 0) -> IntWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    zeros = torch.randint(0, 2**bits, (8, groups), generator=generator, dtype=torch.uint8)
    return IntWeight(
        q=torch.randint(0, 2**bits, (8, columns), generator=generator, dtype=torch.uint8),
        scale=(torch.rand(8, groups, generator=generator) * 0.01 + 1e-3).half(),
        zero_point=torch.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros,
        group_size=group_size,
        bits=bits,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128])
def test_blocks_hold_what_they_promise(bits: int, symmetric: bool, group_size: int):
    weight = random_weight(bits, group_size, symmetric)
    blocks = blocks_for(weight)
    if group_size == 16 or (bits == 8 and not symmetric):
        assert blocks is None
        blocks = fallback_for(weight)
    else:
        assert blocks is not None
    values = torch.from_numpy(gguf.quants.dequantize(pack(weight, blocks), blocks).copy())
    difference = (values - dequantize(weight)).abs()
    assert bool((difference <= worst_error(weight, blocks)).all())
    if blocks_for(weight) and symmetric:
        assert float(difference.max()) == 0


def test_steps_that_float16_cannot_hold_are_requantized():
    weight = random_weight(4, 32, True)
    fine = IntWeight(weight.q, weight.scale.float() * 1.0001, weight.zero_point, 32, 4)
    assert blocks_for(weight) is not None
    assert blocks_for(fine) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_gguf_file_holds_the_weights(family: str, symmetric: bool, tmp_path: Path):
    source = quantized(tmp_path, symmetric, **FAMILIES[family])
    done = to_gguf(source, tmp_path / "m.gguf")
    assert done.linears == {"Q4_0" if symmetric else "Q4_1": 14}
    assert not done.requantized
    found = read_gguf(done.output)
    model = load_dequantized(source, device="cpu").model.state_dict()
    down = model["model.layers.1.mlp.down_proj.weight"]
    assert float((found["blk.1.ffn_down.weight"] - down).abs().max()) <= 2.0**-11 * 15 * float(down.abs().max())
    assert torch.equal(found["token_embd.weight"], model["model.embed_tokens.weight"].float())
    assert ("rope_freqs.weight" in found) == (family == "llama 3 positions")


def test_long_wavelengths_are_stretched_as_transformers_does():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=256, rope_parameters=LLAMA3)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    shape = Shape(256, 2, 512, 4, 4, 64, 256, 1e-5)
    factors = rope_factors(config.to_dict(), shape)
    assert factors is not None
    torch.testing.assert_close(plain / torch.from_numpy(factors), expected)


def test_the_tokenizer_goes_along(tmp_path: Path):
    source = quantized(tmp_path)
    fields = gguf.GGUFReader(to_gguf(source, tmp_path / "m.gguf").output).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert len(tokens) == 2048
    assert fields["tokenizer.ggml.pre"].contents() in ("gpt-2", "llama-bpe", "qwen2")
    assert fields["tokenizer.chat_template"].contents() == (source / "chat_template.jinja").read_text()
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id


def unknown_split(source: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated"}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))


REFUSED = {
    "is of type gpt2": lambda source: edit_config(source, model_type="gpt2"),
    "has no name for": unknown_split,
    "has no tokenizer.json": lambda source: (source / "tokenizer.json").unlink(),
    "cannot be read as a tokenizer": lambda source: (source / "tokenizer.json").write_text('{"model": [1]}'),
    "lacks a size": lambda source: edit_config(source, hidden_size="wide"),
    "by the rule longrope": lambda source: edit_config(source, rope_parameters={"rope_type": "longrope"}),
    "is not quantized": lambda source: edit_config(source, quantization_config=None),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(words: str, tmp_path: Path):
    source = quantized(tmp_path)
    REFUSED[words](source)
    with pytest.raises(BadInputError, match=words):
        to_gguf(source, tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["awq", "float"]


def test_an_output_in_the_way_is_kept(tmp_path: Path):
    source = quantized(tmp_path)
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        to_gguf(source, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    to_gguf(source, tmp_path / "m.gguf", overwrite=True)
    with pytest.raises(UsageError, match="is a folder"):
        to_gguf(source, tmp_path, overwrite=True)


def test_an_mlx_folder_holds_the_integers(tmp_path: Path):
    source = quantized(tmp_path)
    assert to_mlx(source, tmp_path / "mlx").linears == {"4 bits, groups of 32": 14}
    found = load_file(tmp_path / "mlx/model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    float_weight = load_file(tmp_path / "float/model.safetensors")[f"{name}.weight"]
    expected = round_plainly(float_weight, 32)
    words = found[f"{name}.weight"].view(torch.int32)
    q = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], dim=2).flatten(1)
    assert torch.equal(q, expected.q.int())
    assert torch.equal(found[f"{name}.scales"], expected.scale)
    least = -(expected.scale.float() * expected.zero_point.float()).half()
    assert torch.equal(found[f"{name}.biases"], least)
    config = json.loads((tmp_path / "mlx/config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4}
    assert (config["rope_theta"], config["rope_scaling"]) == (10000.0, None)


def test_mlx_refuses_groups_it_has_no_kernel_for(tmp_path: Path):
    source = quantized(tmp_path)
    shutil.rmtree(source)
    write_awq_folder(tmp_path / "float", source, group_size=16)
    with pytest.raises(BadInputError, match="groups of 16 inputs; MLX knows"):
        to_mlx(source, tmp_path / "mlx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = quantized(tmp_path)
    assert main(["export", str(source), "--to", "gguf", "-o", str(tmp_path / "m.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["linears"] == {"Q4_1": 14}
    assert main(["export", str(source), "--to", "mlx", "-o", str(tmp_path / "m")]) == 0
    assert "14 linears as 4 bits, groups of 32" in capsys.readouterr().out
    assert main(["export", str(source), "--to", "gguf", "-o", str(tmp_path / "m.gguf")]) == 2


def difference(model: torch.nn.Module, theirs: Path) -> float:
    """Of the other runtime's logits from the model's, relative to their size."""
    found = load_file(theirs)
    with torch.no_grad():
        ours = model(found["ids"].view(1, -1)).logits[0]
    return float((found["logits"] - ours).norm() / ours.norm())


def with_weights_of(mlx: Path, source: Path) -> torch.nn.Module:
    """The model of `source` with `scale * q + bias` of the MLX folder in its linears."""
    model, found = load_dequantized(source, device="cpu").model, load_file(mlx / "model.safetensors")
    for name in (key.removesuffix(".biases") for key in found if key.endswith(".biases")):
        words, scale, least = (found[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        q = torch.stack([(words.view(torch.int32) >> (4 * place)) & 15 for place in range(8)], dim=2).flatten(1)
        groups = q.float().unflatten(1, (scale.shape[1], -1))
        weight = groups * scale.float()[:, :, None] + least.float()[:, :, None]
        model.get_parameter(f"{name}.weight").data.copy_(weight.flatten(1))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(family: str, tmp_path: Path):
    """It rounds activations to 8 bits in blocks of 32, which these random models feel as 1 to 2 %."""
    source = quantized(tmp_path, **FAMILIES[family])
    to_gguf(source, tmp_path / "m.gguf")
    run_in("llama_cpp", "read_gguf.py", tmp_path / "m.gguf", tmp_path / "theirs.safetensors")
    ours = load_dequantized(source, device="cpu").model
    assert difference(ours, tmp_path / "theirs.safetensors") < 0.04


@pytest.mark.slow
def test_llama_cpp_reads_text_as_the_tokenizer_does(tmp_path: Path):
    text = 'Zoë said: "naïve 12345  spaces"\n\n\tcode(x)  = {y: 1}; 你好 isn\'t it?  \n'
    source = quantized(tmp_path)
    to_gguf(source, tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(text)
    run_in("llama_cpp", "read_gguf.py", tmp_path / "m.gguf", tmp_path / "out.safetensors", tmp_path / "text.txt")
    own = AutoTokenizer.from_pretrained(source)(text, add_special_tokens=False)["input_ids"]
    assert load_file(tmp_path / "out.safetensors")["text_ids"].tolist() == own


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_computes_the_same(family: str, tmp_path: Path):
    """With the minima as they are stored."""
    source = quantized(tmp_path, **FAMILIES[family])
    to_mlx(source, tmp_path / "mlx")
    run_in("mlx", "read_mlx.py", tmp_path / "mlx", tmp_path / "theirs.safetensors")
    ours = with_weights_of(tmp_path / "mlx", source)
    assert difference(ours, tmp_path / "theirs.safetensors") < 1e-5


def test_every_float_dtype_keeps_its_bytes(tmp_path: Path):
    source = quantized(tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    to_gguf(source, tmp_path / "m.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert stored["output.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    own = tensors["lm_head.weight"].view(torch.uint8).numpy()
    assert np.array_equal(stored["output.weight"].data.view(np.uint8).reshape(own.shape), own)
