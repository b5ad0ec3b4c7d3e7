"""Models on the Hub: searching, and looking at one without downloading a weight.

Every refusal of the network is a `NetworkError` with a sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_engine.checkpoint import DTYPE_BYTES, Checkpoint, TensorInfo, read_checkpoint
from awq_engine.errors import BadInputError
from awq_engine.hub_errors import hub_errors
from awq_engine.shapes import check_of
from awq_tui.catalog import PACKED_DTYPES, SHORT_DTYPES, Entry, Where, quantization_label

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB_RESULTS = 30
HUB_FIELDS = ["safetensors", "gated", "downloads", "config", "tags", "pipeline_tag", "library_name"]
HUB_QUANTIZED_TAGS = ("awq", "gptq", "gguf", "bitsandbytes", "compressed-tensors", "exl2", "mlx")


def search_hub(query: str) -> list[Entry]:
    """The most downloaded text models on the Hub that fit the query.

    Raises `NetworkError` with a sentence: offline, refused, broken.
    """
    with hub_errors("the model search"):
        from huggingface_hub import HfApi

        found = HfApi().list_models(
            search=query, filter="safetensors", sort="downloads", limit=HUB_RESULTS,
            expand=HUB_FIELDS,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return [entry for info in itertools.islice(found, HUB_RESULTS) if (entry := _describe_hub(info))]


def hub_checkpoint(entry: Entry) -> Checkpoint:
    """A model on the Hub as its shards' headers describe it, without downloading a weight.

    Raises `NetworkError` with a sentence: gated, unknown, offline; `BadInputError` when it has no safetensors weights.
    """
    with hub_errors(entry.model):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

        repo, _, revision = entry.model.partition("@")
        try:
            metadata = HfApi().get_safetensors_metadata(repo, revision=revision or None)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise BadInputError(f"{entry.model} has no safetensors weights that can be read.") from error
    shards = metadata.files_metadata.values()
    if not all(_is_described(tensor) for shard in shards for tensor in shard.tensors.values()):
        raise BadInputError(f"{entry.model} has a safetensors header that cannot be read.")
    tensors = {
        name: TensorInfo(
            name, tensor.dtype, tuple(tensor.shape), Path(file), tensor.data_offsets[0],
            tensor.data_offsets[1] - tensor.data_offsets[0],
        )
        for file, shard in metadata.files_metadata.items()
        for name, tensor in shard.tensors.items()
    }  # fmt: skip
    return Checkpoint(Path(entry.model), {"model_type": entry.arch or "unknown"}, tensors)


_TEXT, _COUNT, _COUNTS = check_of(str), check_of(int | None), check_of(dict[str, int])


def _is_described(tensor: Any) -> bool:
    offsets = list(tensor.data_offsets)
    return _TEXT(tensor.dtype) and all(map(check_of(list[int]), (tensor.shape, offsets))) and len(offsets) == 2


def _describe_hub(info: ModelInfo) -> Entry | None:
    """The entry of a search result; None for one that is not as the Hub describes models."""
    config = info.config if isinstance(info.config, dict) else {}
    tags = info.tags if isinstance(info.tags, list) else []
    stored = info.safetensors.parameters if info.safetensors else {}
    total = info.safetensors.total if info.safetensors else None
    if not (_TEXT(info.id) and _COUNTS(stored) and _COUNT(total) and _COUNT(info.downloads) and all(map(_TEXT, tags))):
        return None
    main = max(stored, key=lambda dtype: stored[dtype], default="")
    label = quantization_label(config) or _quantized_by_tag(tags)
    if not label and main in PACKED_DTYPES:
        label = "quantized"
    return Entry(
        where=Where.HUB,
        name=info.id,
        model=info.id,
        arch=str(config.get("model_type", "")),
        parameters=None if label else total,
        dtype=SHORT_DTYPES.get(main, main.lower()),
        nbytes=sum(n * DTYPE_BYTES.get(dtype, 2) for dtype, n in stored.items()) or None,
        quantized=label,
        gated=bool(info.gated),
        downloads=info.downloads,
        licence=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), ""),
    )


def _quantized_by_tag(tags: Iterable[str]) -> str:
    lowered = {tag.lower() for tag in tags}
    return next((tag for tag in HUB_QUANTIZED_TAGS if tag in lowered), "")


def open_checkpoint(entry: Entry) -> Checkpoint:
    """The headers of an entry's weights, wherever they are; raises `AwqError` or `OSError`."""
    return read_checkpoint(entry.path) if entry.path is not None else hub_checkpoint(entry)
