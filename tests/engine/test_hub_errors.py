"""Every refusal of the Hub becomes one sentence and the exit code for the network, and no token is ever shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import get_session

from awq_engine.errors import AwqError, NetworkError, ResourceError
from awq_engine.hub_errors import describe, hub_errors
from tests.engine.fake_hub import FakeHub, fake_hub, run_python

TOKEN = "hf_SecretSecretSecretSecret"
ASK = """
import json, sys
from awq_engine.errors import AwqError
from awq_engine.models import resolve_model
answers = {}
for spec in json.loads(%r):
    try:
        resolve_model(spec)
    except AwqError as error:
        answers[spec] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""
SENTENCES = {
    "gated/model": ("is gated: accept its licence at", "gated/model", "hf auth login"),
    "unknown/model": ("There is no unknown/model on the Hub, or it is private", "hf auth login"),
    "revision/model@nope": ("revision/model has no revision 'nope'",),
    "disabled/model": ("has disabled disabled/model",),
    "forbidden/model": ("does not let this login use forbidden/model",),
    "login/model": ("refused the stored login",),
    "broken/model": ("reply about broken/model cannot be understood",),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def answers(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    code = ASK % json.dumps(list(SENTENCES))
    result = run_python(code, hub.url, tmp_path_factory.mktemp("home"), HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("spec", SENTENCES)
def test_refusal_becomes_a_sentence(answers: dict[str, list[str]], spec: str) -> None:
    kind, sentence = answers[spec]
    assert kind == "NetworkError"
    assert all(part in sentence for part in SENTENCES[spec]), sentence


def test_no_sentence_shows_a_token(answers: dict[str, list[str]]) -> None:
    assert len(answers) == len(SENTENCES)
    assert TOKEN not in json.dumps(answers)


def test_private_without_login_may_not_exist(hub: FakeHub, tmp_path: Path) -> None:
    result = run_python(ASK % '["private/model"]', hub.url, tmp_path)
    _, sentence = json.loads(result.stdout)["private/model"]
    assert "There is no private/model on the Hub, or it is private" in sentence


def test_offline_mode_says_so(hub: FakeHub, tmp_path: Path) -> None:
    result = run_python(ASK % '["org/tiny"]', hub.url, tmp_path, HF_HUB_OFFLINE="1")
    kind, sentence = json.loads(result.stdout)["org/tiny"]
    assert kind == "NetworkError"
    assert "Offline mode is on (HF_HUB_OFFLINE) and org/tiny is not in the cache" in sentence


def test_unreachable_hub_says_so(tmp_path: Path) -> None:
    with fake_hub({}) as gone:
        pass
    result = run_python(ASK % '["org/tiny"]', gone.url, tmp_path)
    kind, sentence = json.loads(result.stdout)["org/tiny"]
    assert kind == "NetworkError"
    assert f"{gone.url} cannot be reached" in sentence


@pytest.mark.parametrize(
    ("status", "part"),
    [(403, "does not let this login"), (404, "There is no"), (429, "too many"), (503, "trouble")],
)
def test_bare_status_becomes_a_sentence(status: int, part: str) -> None:
    """Statuses without the Hub's own headers, as mirrors send them; some are retried for a minute over a real wire."""
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx2.Response(status, request=httpx2.Request("GET", "http://127.0.0.1/"))
    error = describe(HfHubHTTPError("no", response=response), "org/tiny")
    assert isinstance(error, NetworkError)
    assert part in str(error)


def test_full_disk_is_a_resource_error() -> None:
    error = describe(OSError(28, "No space left on device"), "org/tiny")
    assert isinstance(error, ResourceError)


def test_another_length_than_the_hub_says_is_no_bug() -> None:
    error = describe(OSError("Consistency check failed: file should be of size 23 but has size 11"), "org/tiny")
    assert isinstance(error, NetworkError)
    assert "did not arrive as long as" in str(error)


def test_silence_has_an_end() -> None:
    """The Hub's client asks some questions with no end of waiting, whatever its own setting."""
    with hub_errors("org/tiny"):
        request = httpx2.Request("GET", "http://127.0.0.1/", extensions={"timeout": {"read": None, "connect": 3.0}})
        for hook in get_session().event_hooks["request"]:
            hook(request)
    assert request.extensions["timeout"] == {"read": 60, "connect": 3.0}


def test_own_bugs_pass_through() -> None:
    with pytest.raises(KeyError), hub_errors("org/tiny"):
        raise KeyError("a bug of ours")


def test_own_errors_pass_through() -> None:
    with pytest.raises(AwqError, match="as it was"), hub_errors("org/tiny"):
        raise AwqError("as it was")
