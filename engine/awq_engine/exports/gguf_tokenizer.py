"""A tokenizer.json in llama.cpp's terms: tokens with scores and kinds, merges, special tokens, the chat template.

llama.cpp has two ways that matter here. `gpt2` merges byte-level pairs by rank, after text was split by one of a few
expressions it has names for; a tokenizer that splits in another way cannot be written, since every prompt would be read
wrongly. `llama` (SentencePiece) merges the pair whose token has the highest score; the negated ranks of
tokenizer.json's merges are such scores.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from awq_engine.errors import BadInputError

_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""llama.cpp's name for each expression that text is split by before byte pairs are merged (its llama-vocab.cpp)."""

Json = dict[str, Any]
logging.getLogger("gguf").setLevel(logging.ERROR)  # it warns of templates for pairs of texts, which nobody uses here


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, n_vocab: int) -> None:
    """Write the tokenizer in `folder` as GGUF metadata, filled up to the `n_vocab` rows of the embedding.

    `BadInputError` when there is no tokenizer.json, or llama.cpp has no way to split text as it does.
    """
    file = folder / "tokenizer.json"
    try:
        found = json.loads(file.read_bytes())
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=n_vocab)
        kind = _kind(found, file)
        tokens = _tokens(found, n_vocab)
        scores = _scores(found, n_vocab) if kind == "llama" else None
        split = _split_name(found, file) if kind == "gpt2" else "default"
    except FileNotFoundError as error:
        raise BadInputError(f"{folder} has no tokenizer.json, which a GGUF file needs.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{file} cannot be read as a tokenizer ({error}); download it again.") from error
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([token_type for _, token_type in tokens])
    if scores is not None:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(_adds_space(found))
        special.merges = []
    special.add_to_gguf(writer, quiet=True)


def _kind(found: Json, file: Path) -> str:
    model = found["model"]
    if model.get("type", "BPE") != "BPE":
        raise BadInputError(
            f"{file} is a tokenizer of type {model['type']}; a GGUF file of this family holds BPE only."
        )
    return "llama" if model.get("byte_fallback") else "gpt2"


def _tokens(found: Json, n_vocab: int) -> list[tuple[str, gguf.TokenType]]:
    """Text and kind of every token id."""
    tokens = [(f"[PAD{index}]", gguf.TokenType.UNUSED) for index in range(n_vocab)]
    model = found["model"]
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)} if model.get("byte_fallback") else set()
    for text, index in model["vocab"].items():
        if 0 <= index < n_vocab:
            kind = gguf.TokenType.BYTE if text in byte_tokens else gguf.TokenType.NORMAL
            tokens[index] = (text, gguf.TokenType.UNKNOWN if text == model.get("unk_token") else kind)
    for added in found.get("added_tokens") or ():
        if 0 <= added["id"] < n_vocab and tokens[added["id"]][1] is not gguf.TokenType.UNKNOWN:
            kind = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
            tokens[added["id"]] = (added["content"], kind)
    for text, _ in tokens:
        if not isinstance(text, str):
            raise ValueError(f"a token is {str(text)[:40]}")
    return tokens


def _scores(found: Json, n_vocab: int) -> list[float]:
    """Minus the rank of the merge that makes a token; tokens that no merge makes come last."""
    model = found["model"]
    merges = model["merges"]
    scores = [-float(len(merges) + index) for index in range(n_vocab)]
    for rank, pair in reversed(list(enumerate(merges))):
        index = model["vocab"]["".join(pair.split(" ") if isinstance(pair, str) else pair)]
        if index < n_vocab:
            scores[index] = -float(rank)
    return scores


def _split_name(found: Json, file: Path) -> str:
    steps = list(_steps(found.get("pre_tokenizer")))
    expressions = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if not expressions and any(step["type"] == "ByteLevel" and step.get("use_regex", True) for step in steps):
        return "gpt-2"
    if len(expressions) == 1 and expressions[0] in _SPLITS:
        return _SPLITS[expressions[0]]
    raise BadInputError(
        f"{file} splits text in a way that llama.cpp has no name for, so a GGUF file would read prompts wrongly; "
        "use the model folder as it is."
    )


def _adds_space(found: Json) -> bool:
    """Whether the tokenizer puts a space before the text (SentencePiece's dummy prefix)."""
    normalizers = [step["type"] for step in _steps(found.get("normalizer"))]
    schemes = [step.get("prepend_scheme") for step in _steps(found.get("pre_tokenizer")) if step["type"] == "Metaspace"]
    return "Prepend" in normalizers or any(scheme != "never" for scheme in schemes)


def _steps(step: Json | None) -> Iterator[Json]:
    """The steps of a normalizer or pre-tokenizer, sequences taken apart."""
    if step is None:
        return
    inner = step.get("normalizers") or step.get("pretokenizers")
    if inner is None:
        yield step
    else:
        for each in inner:
            yield from _steps(each)
