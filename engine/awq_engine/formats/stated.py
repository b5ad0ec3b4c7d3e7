"""What a checkpoint says about its own quantization, in the spellings of the tools that write such files.

AutoAWQ, GPTQModel, llm-compressor's converter and we write `quantization_config` into `config.json`; llm-awq and older
AutoAWQ releases a file `quant_config.json` with `w_bit` and `q_group_size`; auto-round names itself as the method and
AWQ as the packing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from awq_engine.checkpoint import Checkpoint
from awq_engine.config import Format
from awq_engine.errors import BadInputError
from awq_engine.formats.codec import Reader
from awq_engine.formats.registry import CODECS
from awq_engine.spec import QuantSpec


@dataclass(frozen=True)
class Quantization:
    """How the linears of a checkpoint are stored."""

    reader: Reader
    spec_of: Callable[[str], QuantSpec]
    """From the name of a quantized linear in the checkpoint."""

    def linears(self, checkpoint: Checkpoint) -> list[str]:
        """Names of the quantized linears, in the order of the checkpoint."""
        marker = f".{self.reader.marker}"
        return [key.removesuffix(marker) for key in checkpoint.tensors if key.endswith(marker)]


def read_quantization(checkpoint: Checkpoint) -> Quantization | None:
    """None for a checkpoint in floats. Raises `BadInputError` for a quantization that cannot be run here."""
    stated = checkpoint.quantization or _separate_file(checkpoint)
    if stated is None:
        return None
    method = _method(stated)
    if method != "awq":
        raise BadInputError(
            f"{checkpoint.path} is quantized with {method}, which cannot be run here; only AWQ models can."
        )
    version = str(stated.get("version") or stated.get("format") or "gemm").lower()
    bits = stated.get("bits", stated.get("w_bit", 4))
    group_size = stated.get("group_size", stated.get("q_group_size", 128))
    if version != "gemm" or bits != 4 or not isinstance(group_size, int):
        raise BadInputError(
            f"{checkpoint.path} is an AWQ model of version {version} with {bits} bits in groups of {group_size}; "
            "only version gemm with 4 bits can be run here."
        )
    spec = QuantSpec(bits, group_size, symmetric=False)
    return Quantization(CODECS[Format.AWQ], lambda linear: spec)


def _method(stated: dict[str, Any]) -> str:
    method = str(stated.get("quant_method", "awq")).lower()
    if method in ("auto-round", "auto_round", "intel/auto-round") and "awq" in str(stated.get("packing_format", "")):
        return "awq"
    return method


def _separate_file(checkpoint: Checkpoint) -> dict[str, Any] | None:
    file = checkpoint.path / "quant_config.json"
    if not file.is_file():
        return None
    try:
        stated = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{file} cannot be read: {error}.") from error
    if not isinstance(stated, dict):
        raise BadInputError(f"{file} does not hold a JSON object; download the model again.")
    return stated
