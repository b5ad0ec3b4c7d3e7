"""Train the demo model that ships in awq_engine/data/demo-model.

A run goes on from a checkpoint for a fixed number of minutes on the CPU. Matrices are trained with Muon (K. Jordan,
2024: momentum whose update is made orthogonal by five Newton-Schulz steps), the embedding and the norms with AdamW.
The learning rate rises over 40 steps, stays, and falls to zero over the last part of the time, so a run that is to be
continued asks for no fall (`--decay-from 1`). Every row of a batch comes from one kind of text, drawn by its share:

    python scripts/train_demo_model.py --start engine/awq_engine/data/demo-model --out /tmp/demo --minutes 60 \
        --text books.txt=0.6 --text stories.txt=0.4 --chat 0.2 --held-out stories-eval.txt --held-out prose-eval.txt

`--chat SHARE` adds conversations in the model's chat template, composed by `demo_conversations.py` from its own
grammar and from the stories given with `--stories`. The corpora are not part of this repository; docs/demo-model.md
says what they were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_conversations import Conversations
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

WARM_UP_STEPS = 40
MATRIX_RATE, VECTOR_RATE = 0.02, 3e-3
MATRIX_DECAY, MOMENTUM = 0.001, 0.95
HELD_OUT_WINDOW = 256
CHAT_TOKENS = 1_500_000
PIECE = 1 << 20


@dataclass(frozen=True)
class Source:
    """One kind of training text."""

    name: str
    share: float
    """Weight of this source when a row is drawn; the weights need not add up to one."""
    ids: np.ndarray
    """uint16 [n_tokens]."""


class Muon:
    """Momentum with orthogonal updates for two-dimensional parameters, AdamW for the rest."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        named = list(model.named_parameters())
        self.matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        vectors = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(vectors, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply one update; `rate` in [0, 1] multiplies both learning rates."""
        self.adam.param_groups[0]["lr"] = VECTOR_RATE * rate
        self.adam.step()
        for weight, momentum in zip(self.matrices, self.momenta, strict=True):
            assert weight.grad is not None
            momentum.mul_(MOMENTUM).add_(weight.grad)
            update = orthogonal(weight.grad.add(momentum, alpha=MOMENTUM))
            size = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
            weight.mul_(1 - MATRIX_DECAY * rate).add_(update, alpha=-MATRIX_RATE * rate * size)


def orthogonal(gradient: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix, by five quintic Newton-Schulz steps. float32 [rows, columns]."""
    x = gradient / (gradient.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def token_ids(tokenizer, path: Path) -> np.ndarray:
    """uint16 ids of a text file, without special tokens; read in pieces so that a large file needs little memory."""
    parts = []
    with path.open(encoding="utf-8") as file:
        while piece := file.read(PIECE):
            piece += file.readline()
            ids = tokenizer.encode(piece.replace("\x1e\n", ""), add_special_tokens=False)
            parts.append(np.array(ids, dtype=np.uint16))
    return np.concatenate(parts)


def cached_ids(tokenizer, path: Path) -> np.ndarray:
    """As `token_ids`, kept beside the file as `<name>.npy`."""
    cache = path.with_suffix(".npy")
    if not cache.exists():
        np.save(cache, token_ids(tokenizer, path))
    return np.load(cache)


def conversation_ids(tokenizer, stories: Path | None, tokens: int, seed: int) -> np.ndarray:
    """uint16 ids of composed conversations in the model's chat template, at least `tokens` of them."""
    told = stories.read_text(encoding="utf-8").split("\n\x1e\n") if stories else []
    parts, total = [], 0
    for conversation in Conversations(told, seed):
        ids = tokenizer.apply_chat_template(conversation, return_dict=False)
        parts.append(np.array(ids, dtype=np.uint16))
        total += len(ids)
        if total >= tokens:
            return np.concatenate(parts)
    raise AssertionError("conversations have no end")


def batches(sources: list[Source], rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """Endless int64 [rows, length + 1] batches; each row is a random window of one source."""
    random = np.random.default_rng(seed)
    shares = np.array([s.share for s in sources]) / sum(s.share for s in sources)
    while True:
        drawn = [sources[i].ids for i in random.choice(len(sources), rows, p=shares)]
        starts = [random.integers(0, len(ids) - length) for ids in drawn]
        windows = [ids[start : start + length + 1] for ids, start in zip(drawn, starts, strict=True)]
        yield torch.from_numpy(np.stack(windows).astype(np.int64))


def batch_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean next-token loss in nats; `windows` int64 [rows, length + 1]."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids: np.ndarray, windows: int) -> float:
    """Mean loss in nats per token over evenly spread windows of 256 tokens."""
    model.eval()
    starts = np.linspace(0, len(ids) - HELD_OUT_WINDOW - 1, windows).astype(int)
    table = torch.from_numpy(np.stack([ids[s : s + HELD_OUT_WINDOW + 1] for s in starts]).astype(np.int64))
    loss = torch.stack([batch_loss(model, part) for part in table.split(8)]).mean().item()
    model.train()
    return loss


def rate_at(step: int, elapsed: float, decay_from: float) -> float:
    """Learning-rate factor: warm-up over the first steps, then one, then a line to zero; `elapsed` in [0, 1]."""
    fall = 1.0 if elapsed < decay_from else max(0.01, (1 - elapsed) / (1 - decay_from))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write the float16 checkpoint; the float32 weights being trained stay as they are."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(out)


def train(
    model: LlamaForCausalLM, sources: list[Source], held_out: dict[str, np.ndarray], args: argparse.Namespace
) -> int:
    """Train until the time is over, saving whenever the held-out losses are reported; returns the tokens seen."""
    optimizer, begin, tokens, best = Muon(model), time.monotonic(), 0, float("inf")
    model.train()
    for step, windows in enumerate(batches(sources, args.rows, args.length, args.seed)):
        elapsed = (time.monotonic() - begin) / (60 * args.minutes)
        if elapsed >= 1:
            break
        loss = batch_loss(model, windows)
        loss.backward()
        optimizer.step(rate_at(step, elapsed, args.decay_from))
        model.zero_grad(set_to_none=True)
        tokens += args.rows * args.length
        if step % args.report == args.report - 1:
            losses = {name: round(held_out_loss(model, ids, 16), 3) for name, ids in held_out.items()}
            row = {"step": step + 1, "tokens": tokens, "seconds": round(time.monotonic() - begin)}
            print(json.dumps(row | {"loss": round(loss.item(), 3)} | losses), flush=True)
            if held_out and sum(losses.values()) < best:
                best = sum(losses.values())
                save(model, args.out)
    return tokens


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model on text files.")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint to go on from, with its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained checkpoint")
    parser.add_argument("--text", action="append", default=[], metavar="FILE=SHARE", help="text and its share")
    parser.add_argument("--chat", type=float, default=0.0, metavar="SHARE", help="share of composed conversations")
    parser.add_argument("--stories", type=Path, help="stories separated by U+001E lines, to make conversations of")
    parser.add_argument("--held-out", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--decay-from", type=float, default=0.5, metavar="PART", help="when the rate falls")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--report", type=int, default=50, metavar="STEPS")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.start)
    model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32, attn_implementation="sdpa")
    sources = []
    for item in args.text:
        name, share = item.rsplit("=", 1)
        sources.append(Source(name, float(share), cached_ids(tokenizer, Path(name))))
    if args.chat:
        ids = conversation_ids(tokenizer, args.stories, CHAT_TOKENS, args.seed)
        sources.append(Source("chat", args.chat, ids))
    held_out = {path.stem: token_ids(tokenizer, path) for path in args.held_out}
    before = {name: held_out_loss(model, ids, 64) for name, ids in held_out.items()}
    tokens = train(model, sources, held_out, args)
    after = {name: held_out_loss(model, ids, 64) for name, ids in held_out.items()}
    save(model, args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps({"tokens": tokens, "before": before, "after": after}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
