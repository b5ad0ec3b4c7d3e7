"""Our own decoder: the logits of transformers where a model fits, and never taken where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rounded_checkpoint import demo_model, write_awq_folder
from tiny_model import TINY, write_tiny_model

from awq_engine.decoding import _with_graphs, open_decoder, prepare_decoding
from awq_engine.errors import AwqError
from awq_engine.fast_model import FastDecoder, FastModel
from awq_engine.generate import GenerationStats, PromptProgress, generate
from awq_engine.graph_decoder import GraphDecoder
from awq_engine.linear import QuantizedLinear
from awq_engine.mlps import GatedMlp
from awq_engine.reading import Reader
from awq_engine.runtime import LoadedModel, load_model
from awq_engine.sampling import Sampler
from awq_engine.sampling_settings import Sampling
from awq_engine.transformers_decoder import TransformersDecoder, usable_cache

TEXT = [(37 * n * n + 11) % 2000 + 3 for n in range(90)]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
MIXED = ["linear_attention", "full_attention"]
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

FITTING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "untied": ("LlamaConfig", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "wide-heads": ("MistralConfig", {"head_dim": 32, "num_key_value_heads": 1}),
    "window": ("MistralConfig", {"sliding_window": 9}),
    "qwen2": ("Qwen2Config", {}),
    "windows-in-some-blocks": ("Qwen2Config", WINDOWS),
    "head-norms": ("Qwen3Config", {"head_dim": 32}),
    "joined-already": ("Phi3Config", {"pad_token_id": 0}),
    "mixture": ("MixtralConfig", {"num_local_experts": 4}),
    "mixture-in-some-blocks": ("Qwen2MoeConfig", MIXTURE | {"mlp_only_layers": [0]}),
    "mixture-with-head-norms": ("Qwen3MoeConfig", MIXTURE | {"head_dim": 16}),
}
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "norms-around-one": ("GemmaConfig", {"head_dim": 16}, "logits would differ"),
    "four-norms": ("Gemma2Config", {"head_dim": 16}, "has the parts"),
    "half-rotations": ("GptOssConfig", {"num_local_experts": 4, "head_dim": 16}, "it turns 8 of 16 channels"),
    "multipliers": ("GraniteConfig", {"residual_multiplier": 0.9}, "logits would differ"),
    "blocks-without-rotation": ("SmolLM3Config", {"no_rope_layers": [1, 0]}, "logits would differ"),
    "interleaved-pairs": ("HeliumConfig", {"head_dim": 16}, "logits would differ"),
    "rotation-by-length": ("LlamaConfig", {"rope_parameters": DYNAMIC}, "with the length"),
    "no-rotation-at-all": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}, "is not made of"),
    "linear-attention": ("Qwen3NextConfig", {"head_dim": 16, "num_experts": 0, "layer_types": MIXED}, "keeps a"),
}


def load(folder: Path, name: str, changes: dict[str, Any]) -> LoadedModel:
    config = getattr(transformers, name)(**{**TINY, **changes})
    return load_model(write_tiny_model(folder, config), device="cpu")


@torch.inference_mode()
def expected_logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    model: Any = loaded.model
    return model(input_ids=torch.tensor([tokens])).logits[0].float()


def read_in_pieces(fast: FastModel, tokens: list[int], pieces: list[int]) -> torch.Tensor:
    decoder, at, found = FastDecoder(fast), 0, []
    for length in pieces:
        found.append(decoder.read(tokens[at : at + length], keep=length))
        at += length
    return torch.cat(found)


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("pieces", [[90], [1] * 90, [40, 1, 1, 30, 1, 17]], ids=["whole", "one-by-one", "mixed"])
def test_logits_are_those_of_transformers(name: str, pieces: list[int], tmp_path: Path) -> None:
    """However the text is cut into prompt, chunks and single tokens, also past a window."""
    before = expected_logits(loaded := load(tmp_path / "model", *FITTING[name]), TEXT)
    fast = prepare_decoding(loaded).fast
    assert fast is not None
    assert (read_in_pieces(fast, TEXT, pieces) - before).norm() < 1e-5 * before.norm()
    assert (expected_logits(loaded, TEXT) - before).norm() < 1e-5 * before.norm(), "the model stays what it was"


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_fit_goes_to_transformers_and_says_why(name: str, tmp_path: Path) -> None:
    kind, changes, words = OTHERS[name]
    before = load(tmp_path / "model", kind, changes)
    logits = TransformersDecoder(before).read(TEXT[:20], keep=20)
    loaded = prepare_decoding(before)
    assert loaded.fast is None
    assert words in loaded.decoding
    assert torch.equal(open_decoder(loaded).read(TEXT[:20], keep=20), logits)


CACHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "recurrent-states": ("MambaConfig", {"state_size": 8}, "each prompt as a whole"),
    "a-cache-of-its-own": ("MiniMaxConfig", {"num_local_experts": 2, "head_dim": 16}, "no cache that can be used"),
    "both-directions": ("BertConfig", {}, "no cache that can be used"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_used_only_for_what_it_is_good_for(name: str, tmp_path: Path) -> None:
    """A prompt in chunks, tokens, more of a prompt: always what reading everything at once gives."""
    kind, changes, words = CACHES[name]
    loaded = prepare_decoding(load(tmp_path / "model", kind, changes))
    assert words in loaded.decoding
    decoder, read = open_decoder(loaded), 0
    for length in (20, 1, 1, 7, 1):
        read += length
        found = decoder.read(TEXT[read - length : read])
        expected = expected_logits(loaded, TEXT[:read])[-1:]
        assert (found - expected).norm() < 1e-4 * expected.norm(), read


def test_a_prompt_is_read_as_a_whole_where_it_has_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = prepare_decoding(load(tmp_path / "model", *CACHES["recurrent-states"][:2]))
    monkeypatch.setattr("awq_engine.generate.PREFILL_CHUNK", 4)
    messages = [{"role": "user", "content": "Tell me about a dog."}]
    for _ in range(2):
        found = list(generate(loaded, messages, Sampling(max_tokens=4, temperature=0)))
        told = [piece for piece in found if isinstance(piece, PromptProgress)]
        assert [step.done for step in told] == [0, told[0].total]


def test_what_changes_with_the_position_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is of the usual form at its beginning only: checked at the end of its context too."""
    loaded = load(tmp_path / "model", "LlamaConfig", {})
    attention: Any = loaded.model.get_submodule("model.layers.0.self_attn")
    forward = attention.forward

    def cooler(hidden_states: torch.Tensor, **arguments: Any) -> Any:
        far = float(arguments["position_ids"].max()) > 100
        return forward(hidden_states * (0.5 if far else 1.0), **arguments)

    monkeypatch.setattr(attention, "forward", cooler)
    assert "logits would differ" in prepare_decoding(loaded).decoding


def test_a_quantized_model_with_its_linears_joined(tmp_path: Path) -> None:
    """Queries, keys and values are one product, gate and up too, with the logits of the linears one by one."""
    config = transformers.LlamaConfig(**{**TINY, "hidden_size": 256, "intermediate_size": 192})
    folder = write_awq_folder(write_tiny_model(tmp_path / "floats", config), tmp_path / "awq", group_size=32)
    loaded = load_model(folder, device="cpu")
    alone = TransformersDecoder(loaded).read(TEXT[:8], keep=8)
    prepared = prepare_decoding(loaded)
    assert prepared.fast is not None
    block = prepared.fast.blocks[0]
    assert isinstance(block.qkv, QuantizedLinear)
    assert isinstance(block.mlp, GatedMlp)
    assert isinstance(block.mlp.gate_up, QuantizedLinear)
    assert (block.qkv.out_features, block.mlp.gate_up.out_features) == (512, 384)
    torch.testing.assert_close(open_decoder(prepared).read(TEXT[:8], keep=8), alone, rtol=0, atol=1e-3)
    assert torch.equal(TransformersDecoder(loaded).read(TEXT[:8], keep=8), alone), "each still reads its own rows"


class Uncaptured(GraphDecoder):
    """Repeats the step that a GPU would capture, after one that must leave no trace."""

    def capture(self) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        self.step_in_place()
        return self.step


def test_experts_called_one_by_one_are_not_captured(tmp_path: Path) -> None:
    """Which they are is asked of the device; that fails in the middle of a capture."""
    prepared = prepare_decoding(load(tmp_path / "model", *FITTING["mixture"]))
    found = _with_graphs(prepared)
    assert found.decoding == "our own decoder, without CUDA graphs: its experts are called one by one"
    assert not found.graphs


@pytest.mark.parametrize(
    "name", ["llama", "window", "windows-in-some-blocks", "head-norms", "mixture", "joined-already"]
)
def test_the_step_that_a_graph_captures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the whole cache, with its place in a tensor, across the growth of the cache and for a second sequence."""
    before = expected_logits(loaded := load(tmp_path / "model", *FITTING[name]), TEXT)
    fast = prepare_decoding(loaded).fast
    assert fast is not None
    decoder = Uncaptured(replace(fast, context_length=None))
    decoder.reserve(70)  # grows once on the way
    for _ in range(2):
        found = torch.cat([decoder.read(TEXT[:60], keep=60), *(decoder.read([token]) for token in TEXT[60:])])
        assert (found - before).norm() < 1e-5 * before.norm()
        assert decoder.rewind(0)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_looks_ahead_has_no_cache_however_little_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tolerance its logits would pass."""
    monkeypatch.setattr("awq_engine.transformers_decoder.SIMILAR", 10.0)
    folder = write_tiny_model(tmp_path / "model", transformers.BertConfig(**TINY))
    loaded = load_model(folder, device="cpu", dtype=torch.bfloat16)
    assert not loaded.in_float32
    assert usable_cache(loaded) == "none"


RULES = {
    "greedy": Sampling(temperature=0),
    "penalized": Sampling(temperature=0, repetition_penalty=1.5),
    "lively": Sampling(temperature=1.5, top_p=1.0),
    "nucleus": Sampling(temperature=1.2, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1),
}


@pytest.mark.parametrize("rules", RULES)
def test_tokens_drawn_in_the_graph_are_those_drawn_outside(rules: str, tmp_path: Path) -> None:
    """One text after another on the same graph, across the cache's growth; then what is read next follows them."""
    fast = prepare_decoding(load(tmp_path / "model", *FITTING["llama"])).fast
    assert fast is not None
    model = replace(fast, context_length=None)
    ours, plain = Reader(lambda: Uncaptured(model)), Reader(lambda: FastDecoder(model))
    for seed, length in ((1, 40), (2, 260)):  # the cache begins with room for 256
        prompt, texts = TEXT[seed : seed + 20], []
        for reader in (ours, plain):
            known, logits = reader.begin(prompt)
            logits = reader.read(prompt[known:])[-1] if logits is None else logits
            tokens = reader.draw(logits, Sampler(RULES[rules], seed, prompt))
            texts.append([next(tokens) for _ in range(length)])
        assert texts[0] == texts[1]
        further = [*prompt, *texts[0], *TEXT[:5]]
        (known, _), (same, _) = ours.begin(further), plain.begin(further)
        assert known == same == len(prompt) + length - 1, "all but the last drawn were read"
        torch.testing.assert_close(ours.read(further[known:]), plain.read(further[known:]), atol=1e-4, rtol=0)


def test_a_graph_that_computes_no_numbers_says_so(tmp_path: Path) -> None:
    fast = prepare_decoding(load(tmp_path / "model", *FITTING["llama"])).fast
    assert fast is not None
    decoder = Uncaptured(replace(fast, head=lambda x: x.new_full((len(x), fast.vocabulary), float("nan"))))
    tokens = decoder.draw(torch.zeros(fast.vocabulary), Sampler(Sampling(), 0))
    next(tokens)
    with pytest.raises(AwqError, match="no numbers"):
        next(tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FITTING)
def test_graphs_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    """Two sequences one after the other, the cache grown in between."""
    kind, changes = FITTING[name]
    config = getattr(transformers, kind)(**{**TINY, **changes, "max_position_embeddings": 1024})
    loaded = prepare_decoding(load_model(write_tiny_model(tmp_path / "model", config), device="cuda"))
    assert loaded.decoding == "our own decoder, with CUDA graphs"
    assert loaded.fast is not None
    text = (TEXT * 4)[:300]
    ours = open_decoder(loaded)
    for _ in range(2):
        assert ours.rewind(0)
        theirs = TransformersDecoder(loaded)
        for tokens in (text[:200], *([token] for token in text[200:])):
            found, expected = ours.read(tokens), theirs.read(tokens)
            assert (found - expected).norm() < 1e-3 * expected.norm()
    texts = []
    for decoder in (ours, FastDecoder(loaded.fast)):
        assert decoder.rewind(0)
        tokens = decoder.draw(decoder.read(text[:200])[-1], Sampler(RULES["lively"], 0, text))
        texts.append([next(tokens) for _ in range(100)])
    assert texts[0][:8] == texts[1][:8], "later on, other rounding may lead elsewhere"


@pytest.mark.parametrize("name", ["llama", "window", "head-norms"])
@pytest.mark.parametrize("kind", [FastDecoder, Uncaptured])
def test_a_cache_in_bytes_is_near(name: str, kind: type[FastDecoder], tmp_path: Path) -> None:
    """However the text is cut, and after it was taken back. Scores are far apart in a random model, more so where heads
    are normed, which makes much of small differences; logits that have nothing to do with each other differ by 1.4."""
    before = expected_logits(loaded := load(tmp_path / "model", *FITTING[name]), TEXT)
    prepared = prepare_decoding(loaded, kv_cache="int8")
    assert (prepared.decoding, prepared.kv_cache) == ("our own decoder, its cache in 8 bits", "int8")
    assert prepared.fast is not None
    decoder = kind(replace(prepared.fast, context_length=None))
    for first in (60, 20):
        assert decoder.rewind(0)
        pieces = [TEXT[:first], TEXT[first:70], *([token] for token in TEXT[70:])]
        found = torch.cat([decoder.read(piece, keep=len(piece)) for piece in pieces])
        assert 1e-6 * before.norm() < (found - before).norm() < 0.1 * before.norm()


def test_a_cache_in_bytes_takes_a_quarter(tmp_path: Path) -> None:
    """Of that in float32, and a step for each head and token."""
    loaded = load(tmp_path / "model", *FITTING["wide-heads"])
    sizes = []
    for kept in ("float", "int8"):
        fast = prepare_decoding(loaded, kv_cache=kept).fast
        assert fast is not None
        decoder = FastDecoder(fast)
        decoder.read(TEXT)
        sizes.append(sum(tensor.nbytes for cache in decoder._cache for tensor in vars(cache).values()))
    assert sizes[1] == sizes[0] * (32 + 4) / (4 * 32)


def test_only_our_own_decoder_has_a_cache_in_bytes(tmp_path: Path) -> None:
    kind, changes, _ = OTHERS["four-norms"]
    prepared = prepare_decoding(load(tmp_path, kind, changes), kv_cache="int8")
    assert prepared.decoding.endswith("stays in floats")
    assert prepared.kv_cache == "float"


def test_a_quick_head_knows_the_likeliest_tokens_exactly(tmp_path: Path) -> None:
    """The tokens that are drawn, with their logits; the others nearly. Only for those who ask."""
    loaded = load_model(demo_model(), device="cpu")
    plain, quick = prepare_decoding(loaded), prepare_decoding(loaded, quick_head=True)
    assert quick.decoding == "our own decoder, the output head in 4 bits first"
    exact, nearly = open_decoder(plain), open_decoder(quick)
    for token in TEXT[:40]:
        expected, found = exact.read([token])[0], nearly.read([token])[0]
        likeliest = expected.topk(50)
        torch.testing.assert_close(found[likeliest.indices], likeliest.values, rtol=0, atol=1e-4)
        assert 0 < (found - expected).norm() < 0.2 * (expected - expected.mean()).norm()
    assert torch.equal(open_decoder(quick).read(TEXT[:1], exact=True), open_decoder(plain).read(TEXT[:1]))


def test_a_quick_head_where_there_is_none(tmp_path: Path) -> None:
    narrow = load(tmp_path / "narrow", "LlamaConfig", {"vocab_size": 2040})
    assert "16 outputs can be read" in prepare_decoding(narrow, quick_head=True).decoding


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_decoders_write_the_same_text(backend: str, tmp_path: Path) -> None:
    folder = write_awq_folder(demo_model(), tmp_path / "awq", group_size=64)
    loaded = prepare_decoding(load_model(folder, backend=backend, device="cpu"))
    assert loaded.decoding == "our own decoder"
    texts = []
    for way in (loaded, replace(loaded, fast=None)):
        *pieces, stats = generate(way, [{"role": "user", "content": "A dog?"}], Sampling(max_tokens=40, temperature=0))
        assert isinstance(stats, GenerationStats)
        texts.append("".join(piece for piece in pieces if isinstance(piece, str)))
    assert texts[0] == texts[1] != ""
