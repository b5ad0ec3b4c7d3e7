"""Which class a checkpoint's language model is, and where in it the decoder blocks are, without a table of models.

A checkpoint may hold more than a language model: towers for pictures and sound, and projectors from them into the text.
transformers builds such a model as a whole. Only what text runs through matters here: the blocks are sought under the
text config, and a tower, which has a config of its own, is never loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM, PreTrainedModel

from awq_engine.errors import BadInputError
from awq_engine.own_code import is_trusted

AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
"""In the order in which they are tried when config.json does not name a class."""


def auto_class(config: Any) -> Any:
    """The auto class that builds what `config.architectures` names, else the first that knows the type of `config`."""
    known = [auto for auto in AUTO_CLASSES if type(config) in auto._model_mapping]
    for name in config.architectures or ():
        wanted = getattr(transformers, name, None)
        for auto in known:
            if wanted is not None and auto._model_mapping[type(config)] is wanted:
                return auto
    return known[0] if known else AutoModelForCausalLM


def build_empty(config: Any) -> PreTrainedModel:
    """The model of `config` with parameters as torch makes them; raises what transformers raises."""
    return auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=runs_own_code(config))


def runs_own_code(config: Any) -> bool:
    """Whether transformers has no class for `config`, and the code in its folder was allowed."""
    known = any(type(config) in auto._model_mapping for auto in AUTO_CLASSES)
    return not known and is_trusted(Path(config.name_or_path))


def find_blocks(model: PreTrainedModel) -> str:
    """Path of the list of decoder blocks: the largest list with linears, under the text config where there is one."""
    sizes = {
        name: (_is_text(model, name), sum(p.numel() for p in module.parameters()))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(m, nn.Linear) for m in module.modules())
    }
    if not sizes:
        raise BadInputError(f"No list of decoder blocks with linear layers was found in {type(model).__name__}.")
    return max(sizes, key=lambda name: sizes[name])


def _is_text(model: PreTrainedModel, path: str) -> bool:
    """Whether the innermost model around `path` has the config of the text, or of everything."""
    around = [m for name, m in _models(model) if not name or path.startswith(f"{name}.")]
    return type(around[-1].config) in (type(model.config.get_text_config()), type(model.config))


def towers(model: PreTrainedModel) -> list[str]:
    """Paths of the parts that text does not run through: models with the config of another modality.

    Empty for a model that is only for text, however many parts it has.
    """
    text = model.config.get_text_config()
    if text is model.config:
        return []
    own = (
        {id(config) for config in _configs(model.config)}
        - {id(config) for config in _configs(text)}
        - {id(model.config)}
    )
    others = {type(config) for config in _configs(model.config) if id(config) in own}
    return [name for name, module in _models(model) if name and type(module.config) in others]


def head_dim(block: nn.Module, config: Any) -> int:
    """Width of an attention head in `block`, which may be unlike other blocks; 1 where nothing says."""
    for module in block.modules():
        if isinstance(width := getattr(module, "head_dim", None), int):
            return width
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    return text.hidden_size // heads if heads else 1


def value_dim(block: nn.Module, config: Any) -> int:
    """Width of what one head's values hold, where that is not the width of its queries and keys."""
    widths = [getattr(module, "v_head_dim", None) for module in block.modules()]
    return next((width for width in widths if isinstance(width, int)), 0) or head_dim(block, config)


def outside_parts(model: nn.Module, blocks_name: str) -> list[str]:
    """Paths of the largest parts with linears that do not hold the decoder blocks: towers, projectors, the head."""
    return list(_parts_beside(model, "", blocks_name))


def _parts_beside(module: nn.Module, path: str, blocks_name: str) -> Iterator[str]:
    for name, child in module.named_children():
        below = f"{path}.{name}".removeprefix(".")
        if below == blocks_name or not any(isinstance(m, nn.Linear) for m in child.modules()):
            continue
        if blocks_name.startswith(f"{below}."):
            yield from _parts_beside(child, below, blocks_name)
        else:
            yield below


def _configs(config: Any) -> Iterator[Any]:
    """A config and all that are nested in it."""
    yield config
    for name in config.sub_configs:
        if (nested := getattr(config, name, None)) is not None:
            yield from _configs(nested)


def _models(model: PreTrainedModel) -> list[tuple[str, PreTrainedModel]]:
    """The model and every model inside it, outermost first."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, PreTrainedModel)]
