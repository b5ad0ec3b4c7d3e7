"""Which steps a method and a preset stand for: the one place that knows.

                          scales and clips   error feedback   inputs of each group           drift correction
    rtn                          -                 -          of the original model                 -
    gptq, fast                   -           along inputs     of the original model                 -
    awq,  fast                  yes                -          of the original model                 -
    awq or gptq, balanced    awq only        along inputs     of everything rounded before         yes
    awq or gptq, best        awq only        along both sides of everything rounded before         yes

Standard library only: the forecast of a run's time counts these steps too.
"""

from __future__ import annotations

from dataclasses import dataclass

from awq_engine.config import Method, Preset, RunConfig

SENSITIVITY_TOKENS = 8192
"""Calibration tokens whose gradients are looked at."""
OUTPUT_BLOCK = 1024
"""Outputs whose gradients are correlated with one another; more would take more memory than the layer itself."""


MOMENT_BYTES = 3 << 27
"""Moments of the inputs of experts that are held at once; correcting the drift takes as much again."""


@dataclass(frozen=True)
class Recipe:
    """The steps taken on every block."""

    scales: bool = False
    """Search channel scales and fold them in."""
    clips: bool = False
    """Search the range of each group; else it is that of its weights."""
    feedback: bool = False
    """Let later columns make good the rounding error of earlier ones (GPTQ)."""
    sequential: bool = False
    """Take statistics on what the rounding before really passes on."""
    drift: bool = False
    """Move weights first, so that on those inputs they give what the original gave on its own."""
    sensitivity: bool = False
    """Weigh output errors by what they do to the model's prediction, and let rows make good each other's errors."""


def recipe_of(config: RunConfig) -> Recipe:
    """The steps `config` asks for; plain rounding has none, and no presets."""
    if config.method is Method.RTN:
        return Recipe()
    awq, patient = config.method is Method.AWQ, config.preset is not Preset.FAST
    return Recipe(
        scales=awq, clips=awq, feedback=patient or not awq, sequential=patient, drift=patient,
        sensitivity=config.preset is Preset.BEST,
    )  # fmt: skip
