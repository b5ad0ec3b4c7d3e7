"""A step of the fast decoder as one CUDA graph: on a GPU a token costs less to compute than its kernels to launch.

A graph repeats the same kernels on the same memory. So the token, its place and what its draw needs lie in tensors
that the graph itself moves on, attention looks at the whole cache through a mask made from the place, and the graph is
captured anew when the cache has grown, which happens at every doubling, or when the next text is drawn by other rules.
Prompts, whose length differs, are read without a graph.

The host only asks for one step after the other. It is always one ahead: a token travels to the host while the step
that reads it is under way already, and what was computed beyond the last token of a text is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from awq_engine.fast_model import FastDecoder, FastModel, Step, seen_keys
from awq_engine.sampling import DrawState, Sampler, checked_token, draw
from awq_engine.sampling_settings import Sampling

WARM_UPS = 3
"""Runs before the capture, in which kernels are compiled and tuned; torch's own advice."""
GREEDY = Sampling(temperature=0)


class GraphDecoder(FastDecoder):
    """A `FastDecoder` that repeats a captured graph for single tokens."""

    def __init__(self, model: FastModel, first_position: int = 0) -> None:
        super().__init__(model, first_position)
        self._token = torch.zeros(1, dtype=torch.long, device=model.device)
        self._place = torch.zeros(1, dtype=torch.long, device=model.device)
        self._state = DrawState.begin(0, (), model.vocabulary, model.device)
        self._rules = GREEDY
        self._captured: tuple[int, Sampling] | None = None
        self._replay: Callable[[], tuple[torch.Tensor, torch.Tensor]] = self.step

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = False) -> torch.Tensor:
        if len(tokens) != 1:
            return super().read(tokens, keep, exact=exact)
        self._set(tokens[0])
        logits, _ = self._next(self.length)
        self.length += 1
        return logits.float().cpu()

    @torch.inference_mode()
    def draw(self, logits: torch.Tensor, sampler: Sampler) -> Iterator[int]:
        logits = logits.to(self.model.device)
        token = sampler.next(logits)
        yield token
        self._set(token)
        self._state.copy_(sampler.state(logits))
        self._rules = replace(sampler.sampling, max_tokens=1, seed=None, stop=())
        ahead = sent(self._next(self.length)[1])
        while True:
            behind, ahead = ahead, sent(self._next(self.length + 1)[1])
            self.length += 1
            yield checked_token(behind())

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the token in `_token` at `_place` and draw the next; always the same operations, no shape new.

        Returns the logits [1, vocabulary] and what was drawn, int64 [1]. That is the token to read then, in the next
        place.
        """
        windows = {block.window for block in self.model.blocks}
        masks: dict[int | None, torch.Tensor | None] = {
            window: seen_keys(self._place, self.capacity, window) for window in windows
        }
        logits = self.model.head(self.run(self._token, Step(self._place, self.capacity, masks), keep=1))
        drawn = draw(logits[0].float(), self._rules, self._state)
        self._token.copy_(drawn.clamp(min=0))
        self._place.add_(1)
        return logits, drawn

    def capture(self) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """`step` as something to call; what the warm-up writes into the cache, the first replay writes over."""
        with torch.cuda.device(self.model.device):
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self.step_in_place()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                results = self.step()

        def replay() -> tuple[torch.Tensor, torch.Tensor]:
            graph.replay()
            return results

        return replay

    def step_in_place(self) -> None:
        """`step` without moving on: it leaves nothing but what it wrote into the cache."""
        moved = self._token, self._place, self._state.chance, self._state.seen
        before = [tensor.clone() for tensor in moved]
        self.step()
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)

    def _set(self, token: int) -> None:
        """The next step reads `token`, behind all that was read."""
        self._token.fill_(token)
        self._place.fill_(self.length)

    def _next(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next step, whose token goes to `place`."""
        self.reserve(place + 1)
        if self._captured != (wanted := (self.capacity, self._rules)):
            self._replay, self._captured = self.capture(), wanted
        return self._replay()


def sent(token: torch.Tensor) -> Callable[[], int]:
    """Have `token`, int64 [1], brought to the host; the result waits for it, and for nothing that comes after."""
    if token.device.type == "cpu":
        value = int(token)
        return lambda: value
    host = torch.empty(1, dtype=torch.long, pin_memory=True)
    host.copy_(token, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(token.device))

    def wait() -> int:
        arrived.synchronize()
        return int(host)

    return wait
