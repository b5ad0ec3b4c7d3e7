"""The model card of a quantized checkpoint: a function of plan and config, so a resumed run writes the same."""

from __future__ import annotations

from awq_engine.checkpoint import Checkpoint
from awq_engine.plan import Plan

_CARD = """---
base_model: {base}
library_name: transformers
tags: [awq, int4, awq-tui]
---

# {title}

{base} quantized to {bits} bits with AWQ (activation-aware weight quantization) by awq-tui.

| | |
|---|---|
| format | AutoAWQ GEMM, {symmetry}, group size {group_size} |
| quantized | {quantized} linears in {blocks} decoder blocks, {bits_per_weight:.2f} bits per weight |
| kept as they were | everything else: embeddings, norms, head{skipped} |
| size | {before:.1f} MB to {after:.1f} MB |
| method | {method}, preset {preset} |
| calibration | {calibration}, {samples} sequences of {seq_len} tokens |

The weights load in vLLM, SGLang, TGI and transformers as any AWQ checkpoint does, and in `awq-tui chat`.
`quantization_report.json` holds the statistics of every layer.
"""


def model_card(plan: Plan, checkpoint: Checkpoint) -> str:
    """The README.md of the output folder."""
    config = plan.config
    skipped = f", and {len(plan.skipped)} linears that the format cannot hold" if plan.skipped else ""
    base = checkpoint.config.get("_name_or_path") or config.model.rstrip("/").rpartition("/")[2]
    if "/" in config.model and not config.model.startswith((".", "/", "~")):
        base = config.model.partition("@")[0]
    return _CARD.format(
        base=base, title=f"{str(base).rpartition('/')[2]} AWQ", bits=config.bits, group_size=config.group_size,
        symmetry="symmetric" if config.symmetric else "asymmetric", quantized=len(plan.linears),
        blocks=plan.event.n_blocks, bits_per_weight=plan.event.bits_per_weight, skipped=skipped,
        before=plan.event.bytes_before / 1e6, after=plan.event.bytes_after / 1e6, method=config.method.value,
        preset=config.preset.value, calibration=config.calibration, samples=config.samples, seq_len=config.seq_len,
    )  # fmt: skip
