"""Programs that are not ours read what we write, and get the same numbers.

compressed-tensors (the vLLM project) has a reader for AutoAWQ checkpoints; it unpacks the integers its own way, and
transformers runs the result. Its own format transformers loads by itself. Neither shares a line with our packing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, Preset, RunConfig
from awq_engine.decoding import prepare_decoding
from awq_engine.generate import GenerationStats, generate
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.runs import create_run
from awq_engine.runtime import load_dequantized, load_model
from awq_engine.sampling_settings import Sampling

compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")
packed = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
IDS = torch.arange(3, 35).view(1, -1)
pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's code


@pytest.fixture(params=[False, True], ids=["asymmetric", "symmetric"])
def quantized(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model quantized by a whole run."""
    return quantize(tmp_path, symmetric=request.param)


def quantize(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A tiny model in `dtype`, with a head of its own if that is wanted, quantized by a whole run; its folder."""
    tied = not options.get("lm_head", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWQ_TUI_HOME", str(folder / "home"))
        text = folder / "text.txt"
        text.write_text("A bird looked at the river and thought of bread. " * 100)
        model = write_tiny_model(folder / "model", dtype=dtype, tie_word_embeddings=tied)
        config = RunConfig(
            model=str(model), output=str(folder / "out"),
            calibration=str(text), samples=4, seq_len=64, preset=Preset.BALANCED, device="cpu",
            **{"group_size": 32, **options},
        )  # fmt: skip
        run = create_run(config)
        with Journal(run.journal_path) as emit:
            execute(run, emit)
    return folder / "out"


def compress_with_their_tool(folder: Path, symmetric: bool) -> torch.Tensor:
    """A tiny model that compressed-tensors itself rounded and wrote into `folder / "out"`; its logits before that."""
    source = write_tiny_model(folder / "floats")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    weights = quantization.QuantizationArgs(num_bits=4, group_size=32, strategy="group", symmetric=symmetric)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    settings = quantization.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, settings)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.detach().unflatten(1, (-1, 32))
            scale, zero = quantization.utils.calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            module.weight_scale.data.copy_(scale)
            module.weight_zero_point.data.copy_(zero)
            module.quantization_status = quantization.QuantizationStatus.FROZEN
    with torch.no_grad():
        expected = model(IDS).logits
    compressor = compressors.ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(folder / "out")
    compressor.update_config(folder / "out")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "out" / file).write_bytes((source / file).read_bytes())
    return expected


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_what_compressed_tensors_wrote_is_read_and_chats(symmetric: bool, tmp_path: Path):
    """Logits of the model as their own tool rounded it, and an answer from it."""
    expected = compress_with_their_tool(tmp_path, symmetric)
    with torch.no_grad():
        found = load_dequantized(tmp_path / "out", device="cpu").model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert_chats(tmp_path / "out")


def assert_chats(folder: Path) -> None:
    """Whatever is in `folder` answers on the CPU's int4 kernel, as `awq-tui chat` does it."""
    loaded = prepare_decoding(load_model(folder, device="cpu"))
    assert (loaded.backend, loaded.quantized) == ("cpu", 14)
    *_, stats = generate(loaded, [{"role": "user", "content": "Hello"}], Sampling(max_tokens=8, temperature=0))
    assert isinstance(stats, GenerationStats)
    assert stats.new_tokens == 8 or stats.finish_reason == "stop"


def decompressed(quantized: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint in floats, by compressed-tensors' own converter and decompressor."""
    converter = converters.AutoAWQConverter.from_autoawq_config(read_checkpoint(quantized).quantization)
    tensors = converter.process(load_file(quantized / "model.safetensors"))
    scheme = converter._build_quant_config().config_groups["config_group_0"]
    linears = sorted(name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed"))
    for name in linears:
        parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
        local = {part: tensors.pop(f"{name}.{part}") for part in parts}
        local["weight_scale"] = local["weight_scale"].float()  # so that nothing is rounded to float16 on the way
        tensors[f"{name}.weight"] = packed.PackedQuantizationCompressor.decompress(local, scheme)["weight"].float()
    return tensors


def test_compressed_tensors_and_transformers_give_our_logits(quantized: Path):
    """Unpacked by compressed-tensors and run by transformers, the logits are those of our own reader."""
    config = AutoConfig.from_pretrained(quantized)
    del config.quantization_config
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = decompressed(quantized)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    theirs.tie_weights()
    ours = load_dequantized(quantized, device="cpu").model
    ids = torch.arange(3, 67).view(1, 64)
    with torch.no_grad():
        expected, found = ours(ids).logits.float(), theirs(ids).logits.float()

    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, {"bits": 4}),
        (torch.bfloat16, {"bits": 8, "symmetric": True, "group_size": -1}),
        (torch.float16, {"bits": 3, "group_size": 16}),
        (torch.float16, {"bits": 4, "symmetric": True}),
        (torch.float32, {"bits": 2, "symmetric": True}),
        (torch.float32, {"bits": 8, "group_size": -1}),
    ],
    ids=lambda value: str(value).replace("torch.", ""),
)
def test_transformers_loads_compressed_tensors(tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]):
    """The folder as it is, by `from_pretrained`: every weight is ours to within the rounding of its dtype.

    Asymmetric ones are dequantized at load: left packed, transformers 5.23 with compressed-tensors 0.20 makes room for
    zero points that are not packed, and drops the stored ones with a report of a size mismatch, whoever wrote them.
    """
    folder = quantize(tmp_path, dtype, format=Format.COMPRESSED_TENSORS, **options)
    at_load = {} if options.get("symmetric") else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **at_load).eval()
    ours = load_dequantized(folder, device="cpu").model
    ids = torch.arange(3, 67).view(1, 64)
    with torch.no_grad():
        theirs(ids)  # decompresses
        torch.nn.Module.float(theirs)
        expected, found = ours(ids).logits, theirs(ids).logits
    weights = {name: weight for name, weight in theirs.state_dict().items() if name.endswith("proj.weight")}
    stored = torch.bfloat16 if dtype is torch.bfloat16 else torch.float16  # what the steps are in, and they compute in

    assert len(weights) == 14
    for name, weight in weights.items():
        assert torch.equal(weight, ours.get_parameter(name).to(stored).float()), name
    tolerance = 16 * torch.finfo(stored).eps
    assert torch.allclose(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)
