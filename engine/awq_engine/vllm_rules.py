"""What vLLM's fast kernels for quantized weights take, as data, and which linears of a plan they refuse.

From vLLM's `quantization/utils/marlin_utils.py` at commit 007d5005 (2026): `verify_marlin_supports_shape`,
`check_moe_marlin_supports_layer`, `MARLIN_SUPPORTED_GROUP_SIZES`, `query_marlin_supported_quant_types`; and from
`QKVParallelLinear` in `layers/linear.py`. Linears that vLLM joins (`fused.py`) count with their outputs together. When
N devices share a model, each has an Nth of the outputs, or of the inputs for the linears in `CUT_ALONG_INPUTS`; of keys
and values it has at least one whole head; of every expert it has an Nth of the width between its linears.

A refused linear is computed by slower kernels (`awq`), padded to whole tiles (vLLM since 2026), or makes vLLM refuse
the model (older releases, other formats); refused experts by the slower MoeWNA16 kernels. Standard library only.
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
EXPERT_HIDDEN = 128
"""The width of what an expert reads and writes is a multiple of it."""
EXPERT_INNER = 64
"""A part of the width between an expert's linears is a multiple of it, and of the group size."""
GROUP_SIZES = (-1, 32, 64, 128)
KINDS = {
    Format.AWQ: {(4, False), (4, True)},  # written with zero points in both cases
    Format.COMPRESSED_TENSORS: {(4, False), (4, True), (8, True)},
    Format.GPTQ: {(4, True), (8, True)},
    Format.GPTQ_V2: {(4, True), (8, True)},
}
"""By format: bits, and whether symmetric."""
CUT_ALONG_INPUTS = (
    "o_proj", "down_proj", "w2", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "c_proj", "wo"
)  # fmt: skip
"""Last parts of the names of `RowParallelLinear`s."""
KEY_VALUE = ("k_proj", "v_proj")
HEAD = "lm_head"
"""Has its outputs padded to whole tiles before they are shared (`ParallelLMHead`)."""


@dataclass(frozen=True)
class Shape:
    """A quantized linear."""

    out_features: int
    in_features: int
    spec: QuantSpec


def marlin_refusals(layout: Format, linears: Mapping[str, Shape], head_dim: int = 1) -> dict[str, tuple[int, ...]]:
    """By the names of the linears that Marlin refuses: the numbers of devices for which it does.

    Args:
        head_dim: outputs of an attention head, which devices do not share.
    """
    refused: dict[str, tuple[int, ...]] = {}
    for names in by_site(linears).values():
        shapes = {name: linears[name] for name in names}
        devices = _experts_refused(layout, shapes) if EXPERTS in names[0] else _site_refused(layout, shapes, head_dim)
        refused |= dict.fromkeys(names, devices) if devices else {}
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


def _kind_fits(layout: Format, spec: QuantSpec) -> bool:
    return (spec.bits, spec.symmetric) in KINDS[layout] and spec.group_size in GROUP_SIZES


def _site_refused(layout: Format, shapes: Mapping[str, Shape], head_dim: int) -> tuple[int, ...]:
    """For linears that vLLM loads as one."""
    if not all(_kind_fits(layout, shape.spec) for shape in shapes.values()):
        return TENSOR_PARALLEL
    return tuple(devices for devices in TENSOR_PARALLEL if not _part_fits(shapes, devices, head_dim))


def _part_fits(shapes: Mapping[str, Shape], devices: int, head_dim: int) -> bool:
    name, shape = next(iter(shapes.items()))
    inputs = shape.in_features
    if name.rpartition(".")[2] in CUT_ALONG_INPUTS:
        if inputs % devices:
            return False
        outputs, inputs = shape.out_features, inputs // devices
    else:
        parts = [_outputs_of_a_part(name, shape.out_features, devices, head_dim) for name, shape in shapes.items()]
        if None in parts:
            return False
        outputs = sum(part or 0 for part in parts)
    whole_groups = shape.spec.group_size == -1 or inputs % shape.spec.group_size == 0
    return outputs % MIN_OUTPUTS == 0 and inputs % MIN_INPUTS == 0 and whole_groups


def _outputs_of_a_part(name: str, outputs: int, devices: int, head_dim: int) -> int | None:
    """An Nth, but of keys and values a head at the least; None where devices cannot share them evenly."""
    if name.rpartition(".")[2] == HEAD:
        outputs = -(-outputs // MIN_OUTPUTS) * MIN_OUTPUTS
    heads = outputs // head_dim
    if name.rpartition(".")[2] in KEY_VALUE and head_dim > 1 and heads < devices:
        return head_dim if devices % max(heads, 1) == 0 else None
    return None if outputs % devices else outputs // devices


def _experts_refused(layout: Format, shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """For all experts of a block."""
    down = [shape for name, shape in shapes.items() if name.rpartition(".")[2] in CUT_ALONG_INPUTS]
    hidden = {shape.out_features for shape in down}
    inner = {shape.in_features for shape in down}
    kinds = {shape.spec for shape in shapes.values()}
    if not down or len(kinds) > 1 or not all(_kind_fits(layout, spec) for spec in kinds):
        return TENSOR_PARALLEL
    if any(width % EXPERT_HIDDEN for width in hidden):
        return TENSOR_PARALLEL
    step = max(EXPERT_INNER, next(iter(kinds)).group_size)
    return tuple(n for n in TENSOR_PARALLEL if any(width % n or width // n % step for width in inner))
