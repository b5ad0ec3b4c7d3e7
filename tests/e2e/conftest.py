"""A workplace for the real commands: an empty home, no network, one thread, a small model and a text."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.tiny_model import write_tiny_model

COMMAND = str(Path(sysconfig.get_path("scripts")) / "awq-tui")
SENTENCE = "The little dog number {} ran over the old bridge, looked at the river and barked at the moon.\n"


@dataclass(frozen=True)
class Workplace:
    """Folders that belong to one module of tests."""

    folder: Path

    @property
    def here(self) -> Path:
        """Where the commands are started; holds `tiny/` and `stories.txt`."""
        return self.folder / "here"

    @property
    def home(self) -> Path:
        return self.folder / "awq-home"

    @property
    def env(self) -> dict[str, str]:
        """For the commands: nothing of the person who runs the tests is seen, and the Hub is out of reach."""
        return {
            "AWQ_TUI_HOME": str(self.home),
            "HF_HOME": str(self.folder / "hf-home"),
            "HOME": str(self.folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TEXTUAL_THEME": "",
        }


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("e2e"))
    place.here.mkdir()
    never_ending(write_tiny_model(place.here / "tiny", max_position_embeddings=4096))
    (place.here / "stories.txt").write_text("".join(SENTENCE.format(number) for number in range(400)))
    return place


def never_ending(model: Path) -> None:
    """Take away the tokens that end a text, so that a reply lasts until it is stopped or long enough."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((model / name).read_text())
        settings = {key: value for key, value in settings.items() if key not in ("eos_token", "eos_token_id")}
        (model / name).write_text(json.dumps(settings, indent=2))
