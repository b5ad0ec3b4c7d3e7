"""Programs that are not ours read what we write, and get the same numbers.

compressed-tensors (the vLLM project) has a reader for AutoAWQ checkpoints; it unpacks the integers its own way, and
transformers runs the result. Neither shares a line with our packing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Preset, RunConfig
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.runs import create_run
from awq_engine.runtime import load_dequantized

packed = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's code


@pytest.fixture(scope="module", params=[False, True], ids=["asymmetric", "symmetric"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model quantized by a whole run."""
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWQ_TUI_HOME", str(folder / "home"))
        text = folder / "text.txt"
        text.write_text("A bird looked at the river and thought of bread. " * 100)
        config = RunConfig(
            model=str(write_tiny_model(folder / "model")), output=str(folder / "out"), group_size=32,
            symmetric=request.param, calibration=str(text), samples=4, seq_len=64, preset=Preset.BALANCED, device="cpu",
        )  # fmt: skip
        run = create_run(config)
        with Journal(run.journal_path) as emit:
            execute(run, emit)
    return folder / "out"


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
