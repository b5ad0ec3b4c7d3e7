"""The model card of a quantized checkpoint: a function of plan and config, so a resumed run writes the same."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from yaml import YAMLError

from awq_engine.checkpoint import Checkpoint
from awq_engine.command_line import shared_calibration, shared_command
from awq_engine.config import Method, RunConfig
from awq_engine.formats.limits import LIMITS, Format
from awq_engine.models import REPOSITORY
from awq_engine.plan import Plan
from awq_engine.sanitize import one_line
from awq_engine.vllm_rules import TENSOR_PARALLEL

_CARD = """---
{metadata}
library_name: transformers
tags: [{method_tag}, {bits_tag}, awq-tui]
---

# {title}

{base} quantized to {width} by awq-tui: {how}.

| | |
|---|---|
| format | {layout}, {symmetry}, group size {group_size}{shapes} |
| quantized | {quantized} linears in {blocks} decoder blocks{head}, {bits_per_weight:.2f} bits per weight |
| not quantized | {rest}{skipped} |
| size | {before:.1f} MB to {after:.1f} MB |
| method | {method} |
| calibration | {calibration}, {samples} sequences of {seq_len} tokens |

{readers}
{report}
{serving}## Made with

```
{command}
```
"""
SERVED = "FOLDER"
"""Stands in a card for where the model lies, until it lies on the Hub."""
_REPORT = "`quantization_report.json` holds the statistics of every layer.\n"


_REST = "embeddings, head and whatever else is not a linear layer"
_WORDS = {
    Method.AWQ: ("AWQ (activation-aware weight quantization)", f"{_REST}; norms carry the folded scales"),
    Method.GPTQ: ("GPTQ (rounding with error feedback)", f"{_REST}, all as it was"),
    Method.RTN: ("each weight rounded to nearest", f"{_REST}, all as it was"),
}
"""How the integers were chosen, and what became of everything else."""
_READERS = {
    Format.AWQ: "The weights load in vLLM, SGLang, TGI and transformers as any AWQ checkpoint does, and in "
    "`awq-tui chat`.",
    Format.COMPRESSED_TENSORS: "The weights load in vLLM, in transformers with the package compressed-tensors, and in "
    "`awq-tui chat`.",
    Format.GPTQ: "The weights load in vLLM, in transformers with the packages gptqmodel and optimum, when symmetric in "
    "GPTQModel, and in `awq-tui chat`.",
    Format.GPTQ_V2: "The weights load in vLLM since October 2025, in GPTQModel, and in `awq-tui chat`.",
}


_HEAD_READERS = {
    Format.AWQ: "The weights, the head's among them, load in vLLM, GPTQModel and `awq-tui chat`; transformers and "
    "AutoAWQ take no quantized head in this format.",
    Format.COMPRESSED_TENSORS: _READERS[Format.COMPRESSED_TENSORS],
    Format.GPTQ: "The weights, the head's among them, load in vLLM, when symmetric in GPTQModel, and in "
    "`awq-tui chat`; transformers takes no quantized head in this format.",
    Format.GPTQ_V2: _READERS[Format.GPTQ_V2],
}
"""Where the output head is quantized too."""


def model_card(plan: Plan, checkpoint: Checkpoint, asked: RunConfig | None = None) -> str:
    """The README.md of the output folder; `asked` is what the person wrote where the plan chose more."""
    config = plan.config
    base = one_line(_base_name(config, checkpoint))
    how, rest = _WORDS[config.method]
    rest = rest.replace("embeddings, head and", "embeddings and") if plan.head else rest
    widths = {linear.spec.bits for linear in plan.linears}
    skipped = f"; also {len(plan.skipped)} linears that the format cannot hold" if plan.skipped else ""
    return _CARD.format(
        base=base, metadata=_metadata(base, checkpoint.path / "README.md"), how=how,
        title=f"{base.rpartition('/')[2]} AWQ",
        bits_tag=f"int{config.bits}" if len(widths) == 1 else "mixed-precision",
        width=f"{config.bits} bits" if len(widths) == 1 else f"{plan.event.bits_per_weight:.2f} bits per weight",
        group_size=config.group_size, symmetry="symmetric" if config.symmetric else "asymmetric",
        shapes=_shapes(plan),
        quantized=len(plan.linears), head=" and the output head" if plan.head else "",
        blocks=plan.event.n_blocks, bits_per_weight=plan.event.bits_per_weight,
        layout=LIMITS[config.format].title, method_tag=config.format.value,
        readers=" ".join([(_HEAD_READERS if plan.head else _READERS)[config.format], *plan.event.warnings]),
        report=_REPORT, rest=rest, skipped=skipped,
        before=plan.event.bytes_before / 1e6, after=plan.event.bytes_after / 1e6,
        method=_method(config),
        calibration=one_line(shared_calibration(config.calibration)), samples=config.samples, seq_len=config.seq_len,
        serving=_serving(plan), command=one_line(shared_command(asked or config, base)),
    )  # fmt: skip


_LICENCE = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What a quantized model has from its original, as the Hub calls it."""


def _metadata(base: str, card: Path) -> str:
    """The front matter that depends on the original: its id (the Hub refuses what is none), licence and language."""
    found: dict[str, Any] = {}
    if re.fullmatch(REPOSITORY, base, re.ASCII):
        found |= {"base_model": base, "base_model_relation": "quantized"}
    found |= {key: value for key, value in _front_matter(card).items() if key in _LICENCE and value}
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}" for key, value in found.items())


def _front_matter(card: Path) -> dict[str, Any]:
    """Of the original's own card; empty where there is none that can be read."""
    try:
        found = metadata_load(card)
    except (OSError, ValueError, YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _serving(plan: Plan) -> str:
    """How vLLM serves it, and between how many devices its fast kernel can be shared."""
    refused = {devices for linear in plan.event.linears for devices in linear.get("marlin_refuses", ())}
    sizes = [devices for devices in TENSOR_PARALLEL if devices not in refused]
    if not sizes:
        return ""
    listed = ", ".join(map(str, sizes))
    return (
        f"## Serving\n\n```\nvllm serve {SERVED} --tensor-parallel-size {sizes[0]}\n```\n\n"
        f"Tensor parallel sizes that keep vLLM's fast kernel for every linear: {listed}.\n\n"
    )


LISTED_OVERRIDES = 3
"""As many are given in full; of more, how many linears got which shape."""


def _shapes(plan: Plan) -> str:
    """What is not as for most linears: the overrides, or, where these are many, numbers of linears by their shape."""
    if len(plan.config.overrides) <= LISTED_OVERRIDES:
        return "".join(f"; {one_line(override)}" for override in plan.config.overrides)
    counts = Counter((linear.spec.bits, linear.spec.group_size) for linear in plan.linears)
    words = [f"{count} linears with {bits} bits, group size {group}" for (bits, group), count in counts.most_common()]
    return "; " + ", ".join(words)


def converted_card(text: str, layout: Format) -> str:
    """A card of ours after the weights went into another format; any other README stays what it is.

    What no longer holds goes: the sizes, and the report, which speaks of the run and is not copied.
    """
    if f"\n{_REPORT}" not in text:
        return text
    text = re.sub(r"## Serving\n.*?(?=## )", "", text, flags=re.DOTALL)
    text = re.sub(r"\| size \| [^\n]*\n", "", text.replace(f"\n{_REPORT}", ""))
    text = re.sub(r", [\d.]+ bits per weight \|", " |", text)
    for other, limits in LIMITS.items():
        text = text.replace(f"| format | {limits.title},", f"| format | {LIMITS[layout].title},")
        text = text.replace(f"tags: [{other.value}, ", f"tags: [{layout.value}, ")
        for readers in (_READERS, _HEAD_READERS) if other is not layout else ():
            text = text.replace(readers[other], readers[layout])
    return re.sub(r" vLLM's Marlin kernel does not take [^;\n]*; slower kernels may\.", "", text)


def _method(config: RunConfig) -> str:
    if config.method is Method.RTN:
        return "rounded to nearest"
    return f"{config.method.value}, preset {config.preset.value}"


def _base_name(config: RunConfig, checkpoint: Checkpoint) -> str:
    """The Hub id when one was asked for, else what the model calls itself or its folder."""
    if "/" in config.model and not config.model.startswith((".", "/", "~")):
        return config.model.partition("@")[0]
    return str(checkpoint.config.get("_name_or_path") or config.model.rstrip("/").rpartition("/")[2])
