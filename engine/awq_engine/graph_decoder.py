"""A step of the fast decoder as one CUDA graph: on a GPU a token costs less to compute than its kernels to launch.

A graph repeats the same kernels on the same memory. So the token and its place lie in tensors, attention looks at the
whole cache through a mask made from the place, and the graph is captured anew when the cache has grown, which happens
at every doubling. Prompts, whose length differs, are read without a graph. Sampling stays on the CPU, where the same
seed gives the same text on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from awq_engine.fast_model import FastDecoder, FastModel, Step, seen_keys

WARM_UPS = 3
"""Runs before the capture, in which kernels are compiled and tuned; torch's own advice."""


class GraphDecoder(FastDecoder):
    """A `FastDecoder` that repeats a captured graph for single tokens."""

    def __init__(self, model: FastModel, first_position: int = 0) -> None:
        super().__init__(model, first_position)
        self._token = torch.zeros(1, dtype=torch.long, device=model.device)
        self._place = torch.zeros(1, dtype=torch.long, device=model.device)
        self._captured = 0
        self._replay: Callable[[], torch.Tensor] = self.step

    @torch.inference_mode()
    def read(self, tokens: list[int], keep: int = 1, *, exact: bool = False) -> torch.Tensor:
        if len(tokens) != 1:
            return super().read(tokens, keep, exact=exact)
        self.reserve(self.length + 1)
        self._token.fill_(tokens[0])
        self._place.fill_(self.length)
        if self._captured != self.capacity:
            self._replay, self._captured = self.capture(), self.capacity
        self.length += 1
        return self._replay().float().cpu()

    def step(self) -> torch.Tensor:
        """Logits [1, vocabulary] after the token in `_token` at `_place`: always the same operations, no shape new."""
        windows = {block.window for block in self.model.blocks}
        masks: dict[int | None, torch.Tensor | None] = {
            window: seen_keys(self._place, self.capacity, window) for window in windows
        }
        return self.model.head(self.run(self._token, Step(self._place, self.capacity, masks), keep=1))

    def capture(self) -> Callable[[], torch.Tensor]:
        """`step` as something to call; what the warm-up writes into the cache, the first replay writes over."""
        stream = torch.cuda.Stream(self.model.device)
        stream.wait_stream(torch.cuda.current_stream(self.model.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.step()
        torch.cuda.current_stream(self.model.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay
