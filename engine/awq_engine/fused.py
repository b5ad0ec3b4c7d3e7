"""Which linears a server loads as one matrix, and so must be quantized alike.

vLLM and SGLang join q, k and v, gate and up, and all experts of a block; a checkpoint in which the parts differ in bits
or groups, or in which only some are quantized, does not load there. transformers and `awq-tui` itself have no such
rule. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

JOINED = {
    ("q_proj", "k_proj", "v_proj"): "qkv_proj",
    ("gate_proj", "up_proj"): "gate_up_proj",
    ("w1", "w3"): "gate_up_proj",
    ("in_proj_qkv", "in_proj_z"): "in_proj_qkvz",
    ("in_proj_b", "in_proj_a"): "in_proj_ba",
    ("q_a_proj", "kv_a_proj_with_mqa"): "fused_qkv_a_proj",
}
"""Roles that become one matrix where they lie side by side, and its name there (`packed_modules_mapping` in vLLM)."""
EXPERTS = ".experts."
EXPERT_ROLES = ("gate_proj", "up_proj", "down_proj")
"""What vLLM calls the linears of an expert when it looks for their settings, whatever their names are."""

T = TypeVar("T")


def site(key: str) -> str:
    """What the matrix that `key` is loaded into could be called; linears of one site must be quantized alike."""
    parent, _, role = key.rpartition(".")
    if EXPERTS in key:
        return key.partition(EXPERTS)[0] + EXPERTS.rstrip(".")
    joined = next((roles for roles in JOINED if role in roles), (role,))
    return f"{parent}.{'+'.join(joined)}"


def joined_name(roles: Collection[str]) -> str | None:
    """What the matrix made of these roles is called; None for those that stay alone."""
    return next((name for parts, name in JOINED.items() if len(roles) > 1 and set(roles) <= set(parts)), None)


def by_site(keys: Iterable[str]) -> dict[str, list[str]]:
    """The linears of every site, in the order given."""
    sites: dict[str, list[str]] = {}
    for key in keys:
        sites.setdefault(site(key), []).append(key)
    return sites


def disagreement(choices: Mapping[str, T]) -> str | None:
    """A sentence on sites whose linears differ in what was chosen for them; None when all agree.

    Args:
        choices: checkpoint name of every linear -> how it is quantized, None where it is not.
    """
    split = {name: keys for name, keys in by_site(choices).items() if len({choices[key] for key in keys}) > 1}
    if not split:
        return None
    keys = next(iter(split.values()))
    first, other = keys[0], next(key for key in keys if choices[key] != choices[keys[0]])
    more = f" (and {len(split) - 1} more pairs)" if len(split) > 1 else ""
    return (
        f"{first} and {other}{more} are not quantized alike, but vLLM and SGLang load them as one matrix and will "
        "refuse the model; transformers and awq-tui read it."
    )
