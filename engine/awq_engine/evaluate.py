"""How good a model is on text it has not seen, and how far a quantized one is from its original.

    nll         mean negative log-likelihood of the next token, in nats; perplexity = exp(nll)
    kl          mean KL(original || quantized) of the next-token distributions, in nats per token
    top1        share of positions at which both models like the same token best

Windows are disjoint and spread over the text, each starting with the begin-of-text token if the tokenizer puts one.
The default backend computes with the dequantized weights in float32: the figures tell about the weights, not about a
kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from awq_engine.builtin_text import evaluation_documents
from awq_engine.calibration import check_vocabulary
from awq_engine.errors import BadInputError, UsageError
from awq_engine.runtime import LoadedModel, load_dequantized, load_model
from awq_engine.token_windows import cut_windows, read_tokens

EXACT_BACKEND = "reference"
DEFAULT_SEQ_LEN = 512
DEFAULT_MAX_TOKENS = 16384

OnProgress = Callable[[int, int], None]
"""Called with (windows done, windows in all)."""


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found; everything per predicted token."""

    nll: float
    nll_error: float | None
    """Standard error of `nll` over the windows; None with a single window."""
    perplexity: float | None
    """None when it is too large for a float, as that of a broken model."""
    tokens: int
    """Predicted tokens."""
    seq_len: int
    text: str
    """Where the text comes from."""
    model: str
    against: str | None = None
    nll_original: float | None = None
    perplexity_original: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    top1_agreement: float | None = None
    """0 to 1."""

    def to_json(self) -> dict[str, Any]:
        """What `eval --json` prints: without the comparison's fields when nothing was compared."""
        optional = {"nll_original", "perplexity_original", "kl", "kl_error", "top1_agreement"}
        data = dataclasses.asdict(self)
        return data if self.against else {key: value for key, value in data.items() if key not in optional}


@dataclass(frozen=True)
class WindowScore:
    """Means over the predicted tokens of one window."""

    nll: float
    nll_original: float = 0.0
    kl: float = 0.0
    top1_agreement: float = 0.0


def evaluate(
    model: Path, *, against: Path | None = None, text: str = "builtin", seq_len: int = DEFAULT_SEQ_LEN,
    max_tokens: int = DEFAULT_MAX_TOKENS, device: str = "auto", backend: str = EXACT_BACKEND,
    on_progress: OnProgress | None = None,
) -> EvalResult:  # fmt: skip
    """Evaluate the model in the folder `model`, with `against` also its distance to that original.

    Args:
        text: `builtin` (held-out text), a file, a folder or a dataset on the Hub.
        max_tokens: fewer windows are taken when the text is shorter; at least one must fit.
    Raises:
        BadInputError: a folder or the text cannot be used, or the two models have different vocabularies.
        UsageError: `seq_len` is longer than the model's context, `max_tokens` is not positive, or the device is not
            there.
    """
    check_max_tokens(max_tokens)
    quantized = _load(model, device, backend)
    _check_length(quantized, seq_len)
    windows, source = load_windows(text, quantized.tokenizer, seq_len, max_tokens)
    _check_tokens(quantized, windows)
    original = _load(against, device, backend) if against else None
    if original:
        _check_tokens(original, windows)
    scores = []
    for number, score in enumerate(_score(quantized, original, windows), 1):
        scores.append(score)
        if on_progress:
            on_progress(number, len(windows))
    return _summarize(scores, windows, source, model, against)


def check_max_tokens(max_tokens: int) -> None:
    """Raise `UsageError` when nothing is to be measured."""
    if max_tokens < 1:
        raise UsageError(f"--max-tokens must be at least 1, not {max_tokens}.")


def _load(path: Path, device: str, backend: str) -> LoadedModel:
    if backend == EXACT_BACKEND:
        return load_dequantized(path, device=device)
    return load_model(path, device=device, backend=backend)


def _check_length(model: LoadedModel, seq_len: int) -> None:
    limit = model.context_length
    if seq_len < 2 or (limit is not None and seq_len > limit):
        raise UsageError(f"A sequence length of {seq_len} cannot be evaluated; this model takes 2 to {limit} tokens.")


def _check_tokens(model: LoadedModel, windows: torch.Tensor) -> None:
    embedding: Any = model.model.get_input_embeddings()
    check_vocabulary(windows, embedding.num_embeddings)


def load_windows(text: str, tokenizer: Any, seq_len: int, max_tokens: int) -> tuple[torch.Tensor, str]:
    """int64 [windows, seq_len], and where they come from."""
    stream = read_tokens(text, tokenizer, max_tokens, evaluation_documents)
    count = min(max(1, max_tokens // seq_len), stream.fitting(seq_len))
    if count == 0:
        raise BadInputError(
            f"The text {stream.source} has {len(stream.ids)} tokens, but one sequence needs {seq_len}; "
            "use a longer text or a smaller --seq-len."
        )
    source = f"{stream.source} ({stream.detail})" if stream.detail else stream.source
    return cut_windows(stream, count, seq_len), source


def _score(model: LoadedModel, original: LoadedModel | None, windows: torch.Tensor) -> Iterator[WindowScore]:
    for window in windows:
        log_probs = next_token_log_probs(model, window)
        if original is None:
            yield WindowScore(_nll(log_probs, window))
            continue
        reference = next_token_log_probs(original, window).to(log_probs.device)
        if reference.shape != log_probs.shape:
            raise BadInputError(
                f"{model.path} has a vocabulary of {log_probs.shape[-1]} tokens and {original.path} one of "
                f"{reference.shape[-1]}; compare a quantized model with its own original."
            )
        yield compare(log_probs, reference, window)


@torch.inference_mode()
def next_token_log_probs(model: LoadedModel, window: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of each next token, float32 [seq_len - 1, vocabulary]; `window` is int64 [seq_len]."""
    logits = model.model(window[None].to(model.device), use_cache=False).logits[0, :-1]
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    if not torch.isfinite(log_probs).all():
        raise BadInputError(f"{model.path} computes values that are not finite; its weights are damaged or overflow.")
    return log_probs


def compare(log_probs: torch.Tensor, reference: torch.Tensor, window: torch.Tensor) -> WindowScore:
    """Score next-token log-probabilities, float32 [seq_len - 1, vocabulary], against those of the original."""
    kl = (reference.exp() * (reference - log_probs)).sum(dim=-1).double().mean().item()
    agreement = (reference.argmax(dim=-1) == log_probs.argmax(dim=-1)).double().mean().item()
    return WindowScore(_nll(log_probs, window), _nll(reference, window), kl, agreement)


def _nll(log_probs: torch.Tensor, window: torch.Tensor) -> float:
    targets = window[1:, None].to(log_probs.device)
    return -log_probs.gather(1, targets).double().mean().item()


def _summarize(
    scores: list[WindowScore], windows: torch.Tensor, source: str, model: Path, against: Path | None
) -> EvalResult:
    nll, nll_error = _mean_and_error([score.nll for score in scores])
    seq_len = windows.shape[1]
    result = EvalResult(
        nll, nll_error, perplexity(nll), len(windows) * (seq_len - 1), seq_len, source, str(model),
        str(against) if against else None,
    )  # fmt: skip
    if against is None:
        return result
    nll_original, _ = _mean_and_error([score.nll_original for score in scores])
    kl, kl_error = _mean_and_error([score.kl for score in scores])
    agreement, _ = _mean_and_error([score.top1_agreement for score in scores])
    return dataclasses.replace(
        result, nll_original=nll_original, perplexity_original=perplexity(nll_original), kl=kl, kl_error=kl_error,
        top1_agreement=agreement,
    )  # fmt: skip


def perplexity(nll: float) -> float | None:
    """exp(nll), or None where a float cannot hold it."""
    try:
        return math.exp(nll)
    except OverflowError:
        return None


def _mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and its standard error, windows taken as independent; no error from a single one."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
