"""What a quantized checkpoint leaves in floats, which every format has to tell its readers.

Linears inside decoder blocks, and single ones such as the head, go by their names in the checkpoint. A part with
several linears that text does not run through (a vision tower, a projector) goes as a whole, by its path in the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from awq_engine.architecture import outside_parts
from awq_engine.formats.codec import Kept
from awq_engine.skeleton import Skeleton


def skip_list(skeleton: Skeleton, quantized: Collection[str]) -> Kept:
    """Everything that is not quantized.

    Args:
        quantized: names in the checkpoint of the quantized linears.
    """
    linears: list[str] = []
    parts: list[str] = []
    for part in outside_parts(skeleton.model, skeleton.blocks_name):
        inside = list(_linears(skeleton, part))
        if len(inside) == 1 or any(name in quantized for name in inside):
            linears += inside
        else:
            parts.append(part)
    linears += _linears(skeleton, skeleton.blocks_name)
    return Kept(tuple(name for name in dict.fromkeys(linears) if name not in quantized), tuple(parts))


def _linears(skeleton: Skeleton, part: str) -> Iterator[str]:
    """The names in the checkpoint of the linears of a part."""
    for name, module in skeleton.model.get_submodule(part).named_modules(prefix=part):
        if isinstance(module, nn.Linear):
            yield skeleton.written_name(f"{name}.weight").removesuffix(".weight")
