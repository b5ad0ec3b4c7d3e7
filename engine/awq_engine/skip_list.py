"""The names in `modules_to_not_convert`: what readers have to leave in floats.

Readers compare them with their own names of modules, each in its own way: transformers from the start of a name, or its
end; vLLM anywhere in a name. Linears inside decoder blocks, and single ones such as the head, are listed one by one by
their names in the checkpoint. A part with several linears that text does not run through (a vision tower, a projector)
is listed as a whole, under its path (for transformers) and its last name (for vLLM, which keeps towers elsewhere).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from awq_engine.architecture import outside_parts
from awq_engine.skeleton import Skeleton


def skip_list(skeleton: Skeleton, quantized: Collection[str]) -> list[str]:
    """Names of all modules that are not quantized.

    Args:
        quantized: names in the checkpoint of the quantized linears.
    """
    names: list[str] = []
    for part in outside_parts(skeleton.model, skeleton.blocks_name):
        linears = list(_linears(skeleton, part))
        last = part.rpartition(".")[2]
        if len(linears) == 1 or any(name in quantized for name in linears):
            names += linears
        else:
            names += [part] if any(last in name for name in quantized) else [part, last]
    names += _linears(skeleton, skeleton.blocks_name)
    return [name for name in dict.fromkeys(names) if name not in quantized]


def _linears(skeleton: Skeleton, part: str) -> Iterator[str]:
    """The names in the checkpoint of the linears of a part."""
    for name, module in skeleton.model.get_submodule(part).named_modules(prefix=part):
        if isinstance(module, nn.Linear):
            yield skeleton.written_name(f"{name}.weight").removesuffix(".weight")
