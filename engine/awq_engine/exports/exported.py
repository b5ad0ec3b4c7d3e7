"""What came of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exported:
    """A file or folder for another runtime."""

    output: Path
    linears: dict[str, int]
    """How many linears are stored in which way, in the runtime's words."""
    requantized: tuple[str, ...]
    """Linears whose integers the runtime cannot hold: rounded anew, from the AWQ-scaled weights."""
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """What `export --json` prints."""
        return {
            "output": str(self.output), "linears": self.linears, "requantized": list(self.requantized),
            "bytes": self.nbytes,
        }  # fmt: skip
