"""What a checkpoint says about its own quantization, in the spellings of the tools that write such files.

`quantization_config` in `config.json` names the method; older tools wrote a file of their own instead (AutoGPTQ
`quantize_config.json`, llm-awq and early AutoAWQ `quant_config.json` with `w_bit` and `q_group_size`); auto-round names
itself as the method, and the layout as the packing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from awq_engine.checkpoint import Checkpoint
from awq_engine.errors import BadInputError, first_line
from awq_engine.formats import awq_variants as variants
from awq_engine.formats import compressed_tensors as ct
from awq_engine.formats.codec import Reader
from awq_engine.formats.limits import Format
from awq_engine.formats.registry import CODECS
from awq_engine.spec import QuantSpec

Stated = dict[str, Any]
OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files of older tools, and the method when they do not name it."""
GEMV_FAST = Reader(variants.PARTS, variants.unpack_gemv_fast)
AWQ_READERS: dict[str, Reader] = {
    "gemm": CODECS[Format.AWQ], "gemv": Reader(variants.PARTS, variants.unpack_gemv), "gemv_fast": GEMV_FAST,
    "llm-awq": GEMV_FAST, "marlin": Reader(variants.MARLIN_PARTS, variants.unpack_marlin),
}  # fmt: skip
GPTQ_READERS: dict[str, Reader] = {"gptq": CODECS[Format.GPTQ], "gptq_v2": CODECS[Format.GPTQ_V2]}
NAIVE = Reader(ct.NAIVE_PARTS, ct.unpack_naive)
CT_READERS: dict[str, Reader] = {
    "pack-quantized": CODECS[Format.COMPRESSED_TENSORS], "naive-quantized": NAIVE, "int-quantized": NAIVE
}  # fmt: skip


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
    method, stated = _method(stated)
    readers = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed_tensors}
    try:
        if method in readers:
            return readers[method](stated)
        problem = f"it is quantized with {method}; what can be run is {', '.join(readers)}"
    except _UnsupportedError as error:
        problem = first_line(error)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        problem = f"its quantization_config is damaged ({type(error).__name__}: {first_line(error)})"
    raise BadInputError(f"{checkpoint.path} cannot be run here: {problem}.")


class _UnsupportedError(Exception):
    """A clause on what cannot be run."""


def _method(stated: Stated) -> tuple[str, Stated]:
    """The method that describes the tensors, and its settings; auto-round wraps one of the others."""
    method = str(stated.get("quant_method", "awq")).lower()
    if method not in ("auto-round", "auto_round", "intel/auto-round"):
        return method, stated
    packing = str(stated.get("packing_format") or stated.get("backend") or "")
    if "awq" in packing:
        return "awq", stated
    if "llm_compressor" in packing:
        return "compressed-tensors", stated
    version = "gptq" if "gptq" in packing and "gptqmodel" not in packing else "gptq_v2"
    rules = {f"+:^{re.escape(name)}$": settings for name, settings in (stated.get("extra_config") or {}).items()}
    return "gptq", {**stated, "checkpoint_format": version, "dynamic": rules}


def _awq(stated: Stated) -> Quantization:
    version = str(stated.get("version") or stated.get("format") or "gemm").lower()
    bits = stated.get("bits", stated.get("w_bit", 4))
    group_size = stated.get("group_size", stated.get("q_group_size", 128))
    if version not in AWQ_READERS or bits != 4 or not isinstance(group_size, int):
        raise _UnsupportedError(
            f"it is an AWQ model of version {version} with {bits} bits in groups of {group_size}; what can be run is "
            f"version {' or '.join(AWQ_READERS)} with 4 bits"
        )
    spec = QuantSpec(4, group_size, symmetric=not stated.get("zero_point", True))
    return Quantization(AWQ_READERS[version], lambda linear: spec)


def _gptq(stated: Stated) -> Quantization:
    version = str(stated.get("checkpoint_format") or stated.get("format") or "gptq").lower()
    if version not in GPTQ_READERS:
        raise _UnsupportedError(f"it is a GPTQ model in the layout {version}; {' and '.join(GPTQ_READERS)} can be run")
    common = _spec(stated["bits"], stated.get("group_size", -1), stated.get("sym", True))
    rules = [
        (re.compile(rule.removeprefix("+:")), _changed(common, changes))
        for rule, changes in (stated.get("dynamic") or {}).items()
        if not rule.startswith("-:") and changes.get("bits", 0) <= 8  # what stays in floats has no packed tensors
    ]
    return Quantization(
        GPTQ_READERS[version], lambda linear: next((spec for rule, spec in rules if rule.match(linear)), common)
    )


def _changed(spec: QuantSpec, changes: Stated) -> QuantSpec:
    """A rule of GPTQModel's `dynamic` or auto-round's `extra_config` applied to the common spec."""
    return _spec(
        changes.get("bits", spec.bits), changes.get("group_size", spec.group_size), changes.get("sym", spec.symmetric)
    )


def _compressed_tensors(stated: Stated) -> Quantization:
    groups = list(stated["config_groups"].values())
    layouts = {str(group.get("format") or stated.get("format")) for group in groups}
    if len(layouts) != 1 or not layouts <= set(CT_READERS):
        raise _UnsupportedError(
            f"its tensors are in the layout {' and '.join(sorted(layouts))}; {', '.join(CT_READERS)} can be run"
        )
    _check_transforms(stated.get("transform_config") or {})
    schemes = [(_scheme(group), [_pattern(target) for target in group["targets"]]) for group in groups]
    by_class = [_scheme(group) for group in groups if "Linear" in group["targets"]]

    def spec_of(linear: str) -> QuantSpec:
        named = (spec for spec, patterns in schemes if any(pattern.match(linear) for pattern in patterns))
        found = next(named, None) or next(iter(by_class), None)
        if found is None:
            raise BadInputError(f"The quantization_config has no group for {linear}; check the model's config.json.")
        return found

    return Quantization(CT_READERS[layouts.pop()], spec_of)


def _pattern(target: str) -> re.Pattern[str]:
    """Fits the names that a target of a config group means: one in full, or `re:` and how names begin."""
    return re.compile(target.removeprefix("re:") if target.startswith("re:") else rf"{re.escape(target)}\Z")


def _check_transforms(stated: Stated) -> None:
    """Rotations of weights are in the weights; those of activations would have to be done while the model runs."""
    schemes = (stated.get("config_groups") or {}).values()
    places = {str(step["location"]) for scheme in schemes for step in scheme["apply"]}
    if running := sorted(place for place in places if not place.startswith("weight")):
        raise _UnsupportedError(f"it transforms activations while it runs (at {' and '.join(running)})")


def _scheme(group: Stated) -> QuantSpec:
    weights = group["weights"]
    if group.get("input_activations") or group.get("output_activations"):
        raise _UnsupportedError("it quantizes activations too; what can be run is quantized weights")
    if weights["type"] != "int" or weights["strategy"] not in ("group", "channel", "tensor"):
        raise _UnsupportedError(f"its weights are of type {weights['type']}, by {weights['strategy']}; int can be run")
    group_size = weights["group_size"] if weights["strategy"] == "group" else -1
    return _spec(weights["num_bits"], group_size, weights["symmetric"])


def _spec(bits: Any, group_size: Any, symmetric: Any) -> QuantSpec:
    if type(bits) is not int or not 1 <= bits <= 8 or type(group_size) is not int or type(symmetric) is not bool:
        raise _UnsupportedError(f"its weights have {bits} bits in groups of {group_size}; 1 to 8 bits can be run")
    return QuantSpec(bits, group_size, symmetric)


def _separate_file(checkpoint: Checkpoint) -> Stated | None:
    for name, method in OWN_FILES.items():
        file = checkpoint.path / name
        if file.is_file():
            return {"quant_method": method, **_read(file)}
    return None


def _read(file: Any) -> Stated:
    try:
        stated = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{file} cannot be read: {error}.") from error
    if not isinstance(stated, dict):
        raise BadInputError(f"{file} does not hold a JSON object; download the model again.")
    return stated
