"""What vLLM's fast kernels for quantized weights take, as data, and which linears of a plan they refuse.

From vLLM's `quantization/utils/marlin_utils.py` at commit 007d5005 (2026): `verify_marlin_supports_shape`,
`MARLIN_SUPPORTED_GROUP_SIZES` and `query_marlin_supported_quant_types`. Linears that vLLM joins (`fused.py`) count
with their outputs together. When N devices share a model, each has an Nth of the outputs, or of the inputs for the
linears in `CUT_ALONG_INPUTS`. A refused linear is computed by slower kernels (`awq`), padded to whole tiles (vLLM since
2026), or makes vLLM refuse the model (older releases, other formats). Experts have kernels of their own and are left
out here. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from awq_engine.formats.limits import Format
from awq_engine.fused import EXPERTS, by_site
from awq_engine.spec import QuantSpec

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Numbers of devices that people share a model between."""
MIN_OUTPUTS = 64
"""`GPTQ_MARLIN_MIN_THREAD_N`: outputs of a part are a multiple of it."""
MIN_INPUTS = 128
"""`GPTQ_MARLIN_MIN_THREAD_K`: inputs of a part are a multiple of it."""
GROUP_SIZES = (-1, 32, 64, 128)
KINDS = {
    Format.AWQ: {(4, False), (4, True)},  # written with zero points in both cases
    Format.COMPRESSED_TENSORS: {(4, False), (4, True), (8, True)},
    Format.GPTQ: {(4, True), (8, True)},
    Format.GPTQ_V2: {(4, True), (8, True)},
}
"""By format: bits, and whether symmetric."""
CUT_ALONG_INPUTS = ("o_proj", "down_proj", "w2", "out_proj", "dense", "dense_4h_to_h", "fc2", "c_proj", "wo")
"""Last parts of the names of `RowParallelLinear`s."""


@dataclass(frozen=True)
class Shape:
    """A quantized linear."""

    out_features: int
    in_features: int
    spec: QuantSpec


def marlin_refusals(layout: Format, linears: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """By the names of the linears that Marlin refuses: the numbers of devices for which it does."""
    refused: dict[str, tuple[int, ...]] = {}
    for names in by_site(name for name in linears if EXPERTS not in name).values():
        outputs = sum(linears[name].out_features for name in names)
        for name in names:
            shape = linears[name]
            if devices := _refused_at(layout, name, Shape(outputs, shape.in_features, shape.spec)):
                refused[name] = devices
    return refused


def describe_refusals(layout: Format, refused: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A sentence for each set of device numbers, for people."""
    by_devices: dict[tuple[int, ...], list[str]] = {}
    for name, devices in refused.items():
        by_devices.setdefault(devices, []).append(name)
    return [_sentence(layout, devices, names) for devices, names in sorted(by_devices.items())]


def _sentence(layout: Format, devices: tuple[int, ...], names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    where = "" if devices == TENSOR_PARALLEL else f" at tensor parallel size {', '.join(map(str, devices))}"
    return f"vLLM's Marlin kernel does not take {names[0]}{more} in the format {layout}{where}; slower kernels may."


def _refused_at(layout: Format, name: str, shape: Shape) -> tuple[int, ...]:
    spec = shape.spec
    if (spec.bits, spec.symmetric) not in KINDS[layout] or spec.group_size not in GROUP_SIZES:
        return TENSOR_PARALLEL
    return tuple(devices for devices in TENSOR_PARALLEL if not _part_fits(name, shape, devices))


def _part_fits(name: str, shape: Shape, devices: int) -> bool:
    along_inputs = name.rpartition(".")[2] in CUT_ALONG_INPUTS
    outputs, inputs = shape.out_features, shape.in_features
    if (inputs if along_inputs else outputs) % devices:
        return False
    outputs, inputs = (outputs, inputs // devices) if along_inputs else (outputs // devices, inputs)
    whole_groups = shape.spec.group_size == -1 or inputs % shape.spec.group_size == 0
    return outputs % MIN_OUTPUTS == 0 and inputs % MIN_INPUTS == 0 and whole_groups
