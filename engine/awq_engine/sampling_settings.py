"""What decides how a reply is drawn: the engine samples with it, the app asks for it and keeps it with conversations.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from awq_engine.errors import UsageError
from awq_engine.shapes import field_checks

MAX_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn and where it ends."""

    max_tokens: int = 512
    """Most new tokens."""
    temperature: float = 0.7
    """0 takes the likeliest token always."""
    top_p: float = 0.95
    """Choose among the likeliest tokens that together have this probability; 1 for all."""
    seed: int | None = None
    """None draws one; `GenerationStats.seed` tells which."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability; 0 for none."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and of the answer so far less likely (above 1) or more likely (below)."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""

    def __post_init__(self) -> None:
        """Raises `UsageError` for settings that make no sense."""
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1.")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; it must be between 0 (no randomness) and 100.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1.")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1, or 0 for all tokens.")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}; it must be between 0 and 1.")
        if not 0.01 <= self.repetition_penalty <= 10:
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be between 0.01 and 10.")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UsageError(
                f"stop holds {len(self.stop)} texts; at most {MAX_STOPS} are taken, and none may be empty."
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sampling:
        """Rebuild what `dataclasses.asdict` made; unknown fields come from a newer version and are left out.

        Raises `ValueError` for a field of another type.
        """
        checks = field_checks(cls)
        known = {name: data[name] for name in checks if name in data}
        if wrong := [name for name, value in known.items() if not checks[name](value)]:
            raise ValueError(f"{wrong[0]} is no value that it can have")
        return cls(**{**known, "stop": tuple(map(str, known.get("stop", ())))})
