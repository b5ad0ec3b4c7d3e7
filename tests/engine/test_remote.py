"""The program on another machine: what ssh is asked for, and what happens when the connection goes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from awq_engine import cli
from awq_engine.commands import remote
from awq_engine.errors import ExitCode

FAKE_SSH = """#!/bin/sh
printf '%s\\n' "$@" >> "$0.words"
while [ $# -gt 0 ]; do
    case "$1" in
    LocalCommand=*) local="${1#LocalCommand=}" ;;
    --) break ;;
    esac
    shift
done
read -r code reached < "$0.script"
sed -i 1d "$0.script"
[ "$reached" = reached ] && sh -c "$local"
[ "$code" = run ] && exec sh -c "$3"
exit "$code"
"""
"""Plays the lines of a script: an exit code, or `run` for doing what is asked, and whether the machine was reached."""

Script = Callable[..., Path]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A stand-in that plays some lines; returns the file in which it notes what it was called with."""
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(remote, "PAUSES", (0.01,))

    def play(*lines: str) -> Path:
        (tmp_path / "ssh.script").write_text("\n".join(lines) + "\n")
        return tmp_path / "ssh.words"

    return play


def test_command_runs_there_with_its_words_unchanged(ssh: Script, capfd: pytest.CaptureFixture[str]):
    ssh("run reached")
    odd = "it's; $HOME `ls` \\ and spaces"
    code = cli.main(["--host", "box", "--host-command", "printf", "[%s]", odd, "--json"])

    assert code == 0
    assert capfd.readouterr().out == f"[{odd}][--json]"


def test_its_exit_code_is_ours(ssh: Script):
    ssh("3 reached")
    assert cli.main(["--host", "me@box", "quantize", "model"]) == 3


def test_ssh_is_told_where_the_options_end(ssh: Script):
    words = ssh("0 reached")
    cli.main(["--host=me@box", "runs"])
    noted = words.read_text().splitlines()

    assert noted[noted.index("--") :][:2] == ["--", "me@box"]
    assert "-T" in noted  # no terminal here
    assert "ServerAliveInterval=5" in noted


@pytest.mark.parametrize("arguments", [["--host"], ["--host", "-oProxyCommand=x"], ["--host-command", "x", "runs"]])
def test_host_must_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == ExitCode.BAD_INPUT
    assert "--host" in capsys.readouterr().err


def test_machine_that_was_never_reached(ssh: Script, capsys: pytest.CaptureFixture[str]):
    ssh("255 not")
    assert cli.main(["--host", "box"]) == ExitCode.NETWORK
    assert "ssh cannot reach box" in capsys.readouterr().err


def test_program_that_is_not_there(ssh: Script, capsys: pytest.CaptureFixture[str]):
    ssh("127 reached")
    assert cli.main(["--host", "box", "runs"]) == ExitCode.BAD_INPUT
    assert "There is no awq-tui on box; install it there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["watch", "latest"]])
def test_who_only_looks_on_comes_back(ssh: Script, capsys: pytest.CaptureFixture[str], words: list[str]):
    ssh("255 reached", "255 not", "255 not", "255 reached", "0 reached")
    assert cli.main(["--host", "box", *words]) == 0
    assert capsys.readouterr().err.count("The connection to box was lost; runs go on there.") == 4


def test_who_does_something_is_told_where_to_look(ssh: Script, capsys: pytest.CaptureFixture[str]):
    """Starting it again might do it twice."""
    ssh("255 reached")
    assert cli.main(["--host", "box", "quantize", "model"]) == ExitCode.NETWORK
    assert "awq-tui --host box watch latest" in capsys.readouterr().err


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["--host", "box"]) == ExitCode.BAD_INPUT
    assert "ssh, which is not installed" in capsys.readouterr().err


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This machine behind a real ssh server, with a home of its own."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
    if sshd is None or shutil.which("ssh") is None or os.getuid() != 0:
        pytest.skip("needs an ssh server and root")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile {tmp_path}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/key.pub\nUsePAM no\nPermitRootLogin yes\n"
        f"SetEnv AWQ_TUI_HOME={tmp_path}/home PYTHONPATH={os.environ.get('PYTHONPATH', '')}\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host box\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {tmp_path}/key\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    wrapper = tmp_path / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))  # for looking at what is there
    Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen([sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield "box"
        server.kill()


def cut(port_holder: Path) -> None:
    """Kill the server's processes that hold connections, not the one that listens."""
    listening = int((port_holder / "pid").read_text())
    found = subprocess.run(["pgrep", "-P", str(listening)], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.slow
def test_app_over_a_real_connection_that_drops(box: str, tmp_path: Path):
    """A run started there goes on, and the app comes back by itself and shows it."""
    program = str(Path(sys.executable).with_name("awq-tui"))
    here = ["--host", box, "--host-command", program]
    started = subprocess.run([program, *here, "demo", "--json"], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    app = pexpect.spawn(program, here, dimensions=(30, 100), encoding="utf-8", timeout=30)
    app.expect("awq-tui")
    app.expect("Models")
    cut(tmp_path)
    app.expect("The connection to box was lost; runs go on there. Trying again in 1 s")
    app.expect("Models")
    app.send("\x11")  # ctrl+q
    app.expect(pexpect.EOF)
    app.close()
    assert app.exitstatus == 0
