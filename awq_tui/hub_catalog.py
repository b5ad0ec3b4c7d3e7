"""Models on the Hub: searching, and looking at one without downloading a weight.

Every refusal of the network is a `NetworkError` with a sentence, and comes at once: somebody is waiting. (The Hub's own
`list_models` would try six times in half a minute, or sleep as long as a Hub with too many requests asks it to.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

from awq_engine.checkpoint import DTYPE_BYTES, Checkpoint, TensorInfo, read_checkpoint
from awq_engine.errors import BadInputError, NetworkError
from awq_engine.hub_errors import hub_errors
from awq_engine.shapes import check_of
from awq_tui.catalog import PACKED_DTYPES, SHORT_DTYPES, Entry, Where, quantization_label

if TYPE_CHECKING:
    import httpx2

HUB_RESULTS = 30
HUB_FIELDS = ["safetensors", "gated", "downloads", "config", "tags", "pipeline_tag", "library_name"]
HUB_QUANTIZED_TAGS = ("awq", "gptq", "gguf", "bitsandbytes", "compressed-tensors", "exl2", "mlx")


def search_hub(query: str) -> list[Entry]:
    """The most downloaded text models on the Hub that fit the query.

    Raises `NetworkError` with a sentence: offline, refused, broken.
    """
    wanted = {"search": query, "filter": "safetensors", "sort": "downloads", "limit": HUB_RESULTS, "expand": HUB_FIELDS}
    with hub_errors("the model search"):
        found = _ask("api/models", wanted).json()
        if not isinstance(found, list):
            raise ValueError("no list of models")
    return [entry for model in found[:HUB_RESULTS] if (entry := _describe_hub(model))]


def _ask(path: str, params: dict[str, Any] | None = None) -> httpx2.Response:
    """One answer of the Hub, or the exception that `hub_errors` describes."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    address = f"{constants.ENDPOINT}/{path}"
    answer = get_session().get(
        address, params=params, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    hf_raise_for_status(answer)
    return answer


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
    return Checkpoint(Path(entry.model), {"model_type": entry.arch or "unknown", **_config(repo, revision)}, tensors)


def _config(repo: str, revision: str) -> dict[str, Any]:
    """The model's config.json; empty when it cannot be had, for the shapes alone tell most."""
    try:
        with hub_errors(repo):
            found = _ask(f"{repo}/resolve/{quote(revision or 'main', safe='')}/config.json").json()
    except NetworkError:
        return {}
    return found if isinstance(found, dict) else {}


class Weights(TypedDict, total=False):
    """What a search result says about a model's weights."""

    parameters: dict[str, int]
    total: int


class Found(TypedDict, total=False):
    """A search result, as far as it is read."""

    id: str
    gated: str | bool | None
    downloads: int | None
    config: dict[str, Any] | None
    tags: list[str] | None
    safetensors: Weights | None


_TEXT, _IS_MODEL = check_of(str), check_of(Found)


def _is_described(tensor: Any) -> bool:
    offsets = list(tensor.data_offsets)
    return _TEXT(tensor.dtype) and all(map(check_of(list[int]), (tensor.shape, offsets))) and len(offsets) == 2


def _describe_hub(model: Any) -> Entry | None:
    """The entry of a search result; None for one that is not as the Hub describes models."""
    if not _IS_MODEL(model) or "id" not in model:
        return None
    config, tags, weights = model.get("config") or {}, model.get("tags") or [], model.get("safetensors") or {}
    stored: dict[str, int] = weights.get("parameters", {})
    main = max(stored, key=lambda dtype: stored[dtype], default="")
    label = quantization_label(config) or _quantized_by_tag(tags)
    if not label and main in PACKED_DTYPES:
        label = "quantized"
    return Entry(
        where=Where.HUB,
        name=model["id"],
        model=model["id"],
        arch=str(config.get("model_type", "")),
        parameters=None if label else weights.get("total"),
        dtype=SHORT_DTYPES.get(main, main.lower()),
        nbytes=sum(n * DTYPE_BYTES.get(dtype, 2) for dtype, n in stored.items()) or None,
        quantized=label,
        gated=bool(model.get("gated")),
        downloads=model.get("downloads"),
        licence=next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), ""),
    )


def _quantized_by_tag(tags: Iterable[str]) -> str:
    lowered = {tag.lower() for tag in tags}
    return next((tag for tag in HUB_QUANTIZED_TAGS if tag in lowered), "")


def open_checkpoint(entry: Entry) -> Checkpoint:
    """The headers of an entry's weights, wherever they are; raises `AwqError` or `OSError`."""
    return read_checkpoint(entry.path) if entry.path is not None else hub_checkpoint(entry)
