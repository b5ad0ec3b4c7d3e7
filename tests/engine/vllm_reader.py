"""How vLLM decides what each of its modules is quantized with, from config.json alone: its rules, told anew.

Sources, in `vllm/model_executor/layers/quantization/` of vllm-project/vllm, 2026:

    awq                 auto_awq.py (2211d887) `get_quant_method`; utils/quant_utils.py (01693a61) `is_layer_skipped`
    gptq, gptq_v2       utils/gptq_utils.py (02239f5e) `get_dynamic_override`, `is_layer_gptq_quantized`;
                        auto_gptq.py (4276bd50) `get_moe_quant_method`
    compressed-tensors  compressed_tensors.py (documentation of 2026-09-24) `apply_vllm_mapper`, `get_scheme_dict`;
                        utils.py (008014e8) `should_ignore_layer`, `find_matched_target`;
                        compressed_tensors_moe/compressed_tensors_moe.py (0043d6b5) `get_moe_method`

The names of joined linears are the `packed_modules_mapping`s of models/llama.py, internlm2.py, qwen3_5.py and
deepseek_v2.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

PACKED = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"],
    "in_proj_qkvz": ["in_proj_qkv", "in_proj_z"], "in_proj_ba": ["in_proj_b", "in_proj_a"],
    "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"],
}  # fmt: skip

JOINED = "MergedColumnParallelLinear"

Found = tuple[int, int] | None
"""Bits and group size; None for a module in floats."""


class RefusedError(Exception):
    """vLLM stops while it builds the model."""


@dataclass(frozen=True)
class Module:
    """A linear of vLLM's, or all experts of a block."""

    name: str
    kind: str
    """Its class, as far as it matters."""
    holds: tuple[str, ...]
    """Names in the checkpoint of what is loaded into it."""


def modules_of(keys: Collection[str], rename: Callable[[str], str] = str) -> list[Module]:
    """vLLM's modules for the linears of a checkpoint; `rename` is the model's `hf_to_vllm_mapper`."""
    parts: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        parent, _, role = rename(key).rpartition(".")
        if ".experts." in key:
            parts.setdefault((rename(key).partition(".experts.")[0] + ".experts", "RoutedExperts"), []).append(key)
            continue
        together = [name for name, roles in PACKED.items() if role in roles]
        beside = [name for name in together if sum(f"{_parent(key)}.{r}" in keys for r in PACKED[name]) > 1]
        kind = "ParallelLMHead" if role == "lm_head" else JOINED if beside else "RowParallelLinear"
        parts.setdefault((f"{parent}.{beside[0] if beside else role}".lstrip("."), kind), []).append(key)
    return [Module(name, kind, tuple(holds)) for (name, kind), holds in parts.items()]


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _shards(name: str, kind: str) -> list[str]:
    parent, _, last = name.rpartition(".")
    return [f"{parent}.{role}" for role in PACKED[last]] if kind == JOINED else [name]


def _agreed(answers: list[Any], name: str) -> Any:
    if any(answer != answers[0] for answer in answers):
        raise RefusedError(f"some parts of {name} are quantized and some are not")
    return answers[0]


def awq(config: Mapping[str, Any], module: Module, rename: Callable[[str], str]) -> Found:
    """Every name in the list that is part of the module's leaves it in floats."""
    kept = [rename(name) for name in config["modules_to_not_convert"] or []]
    if module.kind == "ParallelLMHead" and not config.get("lm_head"):
        return None
    skipped = _agreed([any(part in name for part in kept) for name in _shards(module.name, module.kind)], module.name)
    return None if skipped else (config["bits"], config["group_size"])


def gptq(config: Mapping[str, Any], module: Module, rename: Callable[[str], str], packed: Collection[str]) -> Found:
    """What has packed tensors is quantized, by the first rule that fits the module's own name, or the common one."""
    if module.kind == "ParallelLMHead" and not config.get("lm_head"):
        return None
    for rule, changes in (config["dynamic"] or {}).items():
        if re.match(rule.removeprefix("-:").removeprefix("+:"), module.name):
            if rule.startswith("-:"):
                return None
            return changes.get("bits", config["bits"]), changes.get("group_size", config["group_size"])
    if module.kind != "RoutedExperts":
        names = [rename(name) for name in packed]
        if not _agreed(
            [any(name in shard for name in names) for shard in _shards(module.name, module.kind)], module.name
        ):
            return None
    return config["bits"], config["group_size"]


def compressed_tensors(config: Mapping[str, Any], module: Module, rename: Callable[[str], str]) -> Found:
    """By the module's name, then its class, then the names of its parts; an expert by the names of the first one."""
    if module.kind == "RoutedExperts":
        names = [f"{module.name}.0.{role}" for role in ("gate_proj", "up_proj", "down_proj")]
        return _agreed([_scheme(config, name, "Linear", rename) for name in names], module.name)
    return _scheme(config, module.name, module.kind, rename)


def _scheme(config: Mapping[str, Any], name: str, kind: str, rename: Callable[[str], str]) -> Found:
    def mapped(target: str) -> str:
        return target if target.startswith("re:") or "." not in target else rename(target)

    def fits(name: str, target: str) -> bool:
        return bool(re.match(target[3:], name)) if target.startswith("re:") else target == name

    ignored = [mapped(target) for target in config["ignore"]]
    if _agreed([any(fits(shard, target) for target in ignored) for shard in _shards(name, kind)], name):
        return None
    schemes = {
        mapped(target): group["weights"] for group in config["config_groups"].values() for target in group["targets"]
    }
    own = [target for target in schemes if fits(name, target)]
    by_class = [target for target in schemes if not target.startswith("re:") and target.lower() in kind.lower()]
    by_parts = [next((t for t in schemes if fits(shard, t)), None) for shard in _shards(name, kind)]
    found = [*own, *by_class, *([by_parts[0]] if all(by_parts) else [])]
    if not found:
        return None
    weights = schemes[found[0] or ""]
    return weights["num_bits"], weights["group_size"] or -1
