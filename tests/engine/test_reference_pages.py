"""The reference pages say what the code does, and the guide names only options that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from write_reference import EXITS, FOLDER, PAGES  # noqa: E402

from awq_engine.cli import build_parser, main  # noqa: E402
from awq_engine.errors import ExitCode  # noqa: E402

GUIDES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str):
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name]().rstrip() + "\n", (
        "run scripts/write_reference.py"
    )


def test_every_exit_code_is_explained():
    assert set(EXITS) == set(ExitCode)


@pytest.mark.parametrize("guide", [each for each in GUIDES if each.name != "LOG.md"], ids=lambda path: path.name)
def test_guides_name_commands_and_options_that_exist(guide: Path):
    parser = build_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    known = {option for each in (parser, *commands.choices.values()) for option in each._option_string_actions}
    for line in re.findall(r"awq-tui ([^`\n]+)", guide.read_text(encoding="utf-8")):
        words = line.split()
        if words[0] in commands.choices:
            options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
            own = set(commands.choices[words[0]]._option_string_actions)
            assert set(options) <= own, f"{guide.name}: awq-tui {line}"
    for option in re.findall(r"`(--[a-z][a-z-]+)[ `]", guide.read_text(encoding="utf-8")):
        assert option in known | OTHERS, f"{guide.name}: {option}"


OTHERS = {"--quantization", "--tensor-parallel-size", "--upgrade"}
"""Of other programs."""


def test_a_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    words = "COMP_WORDS=(awq-tui quantize model --pre); COMP_CWORD=3; _shtab_awq_tui; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"source {script}; {words}"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--preset"]
