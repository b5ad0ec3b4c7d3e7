"""A decoder of our own for the models most people run: blocks of attention and an MLP with a norm before each.

transformers' forward pass builds masks, positions and cache entries anew for every token, in Python. Where the blocks
are of the usual form (Llama, Mistral, Qwen and what is built like them) the same is done here with a few operations
over a key-value cache that is allocated ahead, and with the linears that read the same input joined to one product.

What fits is found by structure, not by a table of models: the modules that a block has, and what can be read off them.
`decoding` then runs a few tokens through both and takes this one only where they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from awq_engine.joined import join_linears
from awq_engine.key_values import KeyValues
from awq_engine.mlps import GatedMlp, Mlp, OtherMlp, parts_of, read_mlp
from awq_engine.reading import Decoder
from awq_engine.steps import HeadNorms, Norm, Place, Steps

Linear = Callable[[torch.Tensor], torch.Tensor]

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
JOINED_ATTENTION = {"qkv_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
BLOCK = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
AROUND = {"embed_tokens", "layers", "norm", "rotary_emb"}
PROBED = 16
"""Positions at either end of the context whose rotations are compared."""


class MisfitError(Exception):
    """Why a model is not of the usual form, as a clause."""


@dataclass(frozen=True)
class Block:
    """One decoder block."""

    attention_norm: Norm
    qkv: Linear
    """To queries, keys and values of all heads, in this order."""
    head_norms: HeadNorms | None
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """What scores are multiplied by."""
    window: int | None
    """How many tokens attention looks back, the present one included; None for all."""
    output: Linear
    mlp_norm: Norm
    mlp: Mlp


@dataclass(frozen=True)
class FastModel:
    """Everything a token runs through."""

    embed: Callable[[torch.Tensor], torch.Tensor]
    blocks: tuple[Block, ...]
    norm: Norm
    head: Linear
    vocabulary: int
    """How many logits the head gives."""
    rotations: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """From positions, int64 [n], to cosines and sines, each [n, head_dim]."""
    device: torch.device
    dtype: torch.dtype
    """Of the activations and of the cache."""
    context_length: int | None
    quick_head: Linear | None = None
    """Takes the place of `head` for those who asked for it."""
    steps: Steps = field(default_factory=Steps)
    """How what lies between the products is computed."""
    key_values: type[KeyValues] = KeyValues
    """How a block's keys and values are kept."""

    @property
    def plain(self) -> bool:
        """Whether every token runs through the same weights, so that no rounding sends it elsewhere."""
        return all(isinstance(block.mlp, GatedMlp) for block in self.blocks)

    @property
    def steady(self) -> bool:
        """Whether a step is the same operations whatever it computes, so that a graph can hold it."""
        return all(block.mlp.steady for block in self.blocks if isinstance(block.mlp, OtherMlp))


def read_model(model: PreTrainedModel, context_length: int | None, dtype: torch.dtype) -> FastModel:
    """`model` taken apart; its linears are joined in place and stay usable. `MisfitError` says why it cannot be."""
    base: Any = next((module for module in model.modules() if parts_of(module) == AROUND), None)
    if base is None:
        raise MisfitError(f"{type(model).__name__} is not made of embeddings, blocks, a norm and a rotation alone")
    windows = _windows(model)
    blocks = list(base.layers)
    if len(windows) != len(blocks):
        raise MisfitError("the cache has another number of layers than the model has blocks")
    for block in blocks:
        _check_parts(block)
    rotations, head = _rotations(base.rotary_emb, dtype, context_length), cast(Any, model.get_output_embeddings())
    for block in blocks:
        if (
            turned := rotations(torch.zeros(1, dtype=torch.long, device=model.device))[0].shape[1]
        ) != block.self_attn.head_dim:
            raise MisfitError(f"it turns {turned} of {block.self_attn.head_dim} channels of a head")
    return FastModel(
        embed=base.embed_tokens,
        blocks=tuple(_read_block(block, window) for block, window in zip(blocks, windows, strict=True)),
        norm=_norm(base.norm),
        head=head,
        vocabulary=head.out_features,
        rotations=rotations,
        device=model.device,
        dtype=dtype,
        context_length=context_length,
    )


def _windows(model: PreTrainedModel) -> list[int | None]:
    """How far each block looks back, as transformers' own cache for this model knows it."""
    windows: list[int | None] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise MisfitError(f"it keeps a {type(layer).__name__}, not keys and values of all tokens")
        windows.append(getattr(layer, "sliding_window", None))
    return windows


def _rotations(
    rotary: Any, dtype: torch.dtype, context_length: int | None
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The model's rotary embedding, once it is sure that a position's rotation does not depend on the length."""

    def rotations(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = rotary(torch.empty(0, dtype=dtype, device=positions.device), positions[None])
        return cos[0], sin[0]

    near = torch.arange(PROBED, device=rotary.inv_freq.device)
    far = near + max(PROBED, context_length or 0)
    alone, among = rotations(near), rotations(torch.cat([near, far]))
    if not all(torch.equal(a, b[:PROBED]) for a, b in zip(alone, among, strict=True)):
        raise MisfitError("its rotary embedding changes with the length of the text")
    return rotations


def _check_parts(block: Any) -> None:
    if parts_of(block) != BLOCK:
        raise MisfitError(f"a {type(block).__name__} has the parts {', '.join(sorted(parts_of(block)))}")
    if parts_of(block.self_attn) not in (ATTENTION, ATTENTION | HEAD_NORMS, JOINED_ATTENTION):
        raise MisfitError(f"its attention has the parts {', '.join(sorted(parts_of(block.self_attn)))}")


def _read_block(block: Any, window: int | None) -> Block:
    attention, width = block.self_attn, block.self_attn.head_dim
    queries, (qkv, keys) = attention.o_proj.in_features, _read_heads(attention)
    if queries % width or keys % width or queries % keys:
        raise MisfitError(f"its attention has {queries} queries and {keys} keys in heads of {width}")
    return Block(
        attention_norm=_norm(block.input_layernorm),
        qkv=qkv,
        head_norms=_head_norms(attention, width) if hasattr(attention, "q_norm") else None,
        heads=queries // width,
        kv_heads=keys // width,
        head_dim=width,
        scale=attention.scaling,
        window=window,
        output=attention.o_proj,
        mlp_norm=_norm(block.post_attention_layernorm),
        mlp=read_mlp(block.mlp),
    )


def _read_heads(attention: Any) -> tuple[Linear, int]:
    """Queries, keys and values as one product, and how many channels all keys of a token have."""
    if parts_of(attention) == JOINED_ATTENTION:
        return attention.qkv_proj, (attention.qkv_proj.out_features - attention.o_proj.in_features) // 2
    keys, values = attention.k_proj.out_features, attention.v_proj.out_features
    if keys != values:
        raise MisfitError(f"its keys have {keys} channels and its values {values}")
    return join_linears([attention.q_proj, attention.k_proj, attention.v_proj]), keys


def _norm(module: Any) -> Norm:
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or not isinstance(epsilon, float) or hasattr(module, "bias"):
        raise MisfitError(f"its norms are {type(module).__name__}")
    return Norm(weight, epsilon)


def _head_norms(attention: Any, width: int) -> HeadNorms:
    queries, keys = _norm(attention.q_norm), _norm(attention.k_norm)
    if len(queries.weight) != width or len(keys.weight) != width:
        raise MisfitError("its queries and keys are normed across heads")
    return HeadNorms(torch.stack([queries.weight, keys.weight]), (queries.epsilon, keys.epsilon))


@dataclass(frozen=True)
class Step:
    """Where the next tokens go and what they look at."""

    where: Place
    """Their places in the cache."""
    stop: int
    """Keys in the cache from here on are not looked at."""
    masks: dict[int | None, torch.Tensor | None]
    """For each window: which keys each token looks at, bool [n, stop]; None for all that the window holds."""


class FastDecoder(Decoder):
    """One sequence read by a `FastModel`."""

    def __init__(self, model: FastModel, first_position: int = 0) -> None:
        """`first_position`: of the first token, for checks far behind in the context."""
        self.model = model
        self.first_position = first_position
        self.length = 0
        self.capacity = 0
        self._cache = [
            model.key_values(block.kv_heads, block.head_dim, model.dtype, model.device) for block in model.blocks
        ]
        self._cos = self._sin = torch.empty(0)  # [capacity, 1, head_dim]

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = False) -> torch.Tensor:
        n = len(tokens)
        self.reserve(self.length + n)
        step = Step(slice(self.length, self.length + n), self.length + n, self._masks(n))
        x = self.run(torch.tensor(tokens, device=self.model.device), step, keep)
        self.length += n
        head = self.model.head if exact or self.model.quick_head is None else self.model.quick_head
        return head(x).float().cpu()

    def rewind(self, length: int) -> bool:
        self.length = length
        return True

    def run(self, tokens: torch.Tensor, step: Step, keep: int) -> torch.Tensor:
        """What the head makes logits of, after the last `keep` of `tokens`, int64 [n]; the cache takes them all."""
        steps, x, delta = self.model.steps, self.model.embed(tokens), None
        rotation = self._cos[step.where], self._sin[step.where]
        for block, cache in zip(self.model.blocks, self._cache, strict=True):
            x, normed = steps.add_norm(x, delta, block.attention_norm)
            x, normed = steps.add_norm(x, _attention(steps, block, cache, normed, step, rotation), block.mlp_norm)
            delta = block.mlp(steps, normed)
        return steps.add_norm(x[-keep:], None if delta is None else delta[-keep:], self.model.norm)[1]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens: twice as much each time, so that a token costs the same however long."""
        if length <= self.capacity:
            return
        self.capacity = max(length, min(max(256, 2 * self.capacity), self.model.context_length or length))
        for cache in self._cache:
            cache.grow(self.capacity)
        positions = torch.arange(self.capacity, device=self.model.device) + self.first_position
        cos, sin = self.model.rotations(positions)
        half = sin.shape[1] // 2
        self._cos, self._sin = cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], dim=1)[:, None]

    def _masks(self, n: int) -> dict[int | None, torch.Tensor | None]:
        windows = {block.window for block in self.model.blocks}
        return {window: None if self._is_plain(n, window) else self._mask(n, window) for window in windows}

    def _is_plain(self, n: int, window: int | None) -> bool:
        """Whether the next `n` tokens look at all keys that they may look at at all."""
        return n == 1 or (self.length == 0 and (window is None or window >= n))

    def _mask(self, n: int, window: int | None) -> torch.Tensor:
        total = self.length + n
        queries = torch.arange(self.length, total, device=self.model.device)
        return seen_keys(queries, total, window)


def seen_keys(queries: torch.Tensor, n_keys: int, window: int | None) -> torch.Tensor:
    """Which of the first `n_keys` tokens those at the places `queries`, int64 [n], look at: bool [n, n_keys]."""
    keys = torch.arange(n_keys, device=queries.device)
    return (keys <= queries[:, None]) & (keys > queries[:, None] - (window or n_keys))


def _attention(
    steps: Steps,
    block: Block,
    cache: KeyValues,
    x: torch.Tensor,
    step: Step,
    rotation: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Of the normed `x` [n, hidden], turned by `rotation`; keys and values go into `cache`."""
    n, group, mask = len(x), block.heads // block.kv_heads, step.masks[block.window]
    heads = block.qkv(x).view(n, block.heads + 2 * block.kv_heads, block.head_dim)
    queries = cache.take(steps, heads, block.head_norms, step.where, rotation)
    first = 0 if mask is not None or block.window is None else max(0, step.stop - block.window)
    keys, values = cache.read(first, step.stop)[:, :, None]  # [kv_heads, 1, n_keys, head_dim]
    queries = queries.view(n, block.kv_heads, group, block.head_dim)
    if n == 1:  # the heads that share a key are its queries: nothing is repeated
        y = F.scaled_dot_product_attention(queries.transpose(0, 1), keys, values, attn_mask=mask, scale=block.scale)
        return block.output(y.reshape(1, -1))
    keys, values = (part.expand(-1, group, -1, -1) for part in (keys, values))
    y = F.scaled_dot_product_attention(
        queries.permute(1, 2, 0, 3), keys, values, attn_mask=mask, is_causal=mask is None, scale=block.scale
    )
    return block.output(y.permute(2, 0, 1, 3).reshape(n, -1))
