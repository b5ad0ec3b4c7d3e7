"""The Hub's client is as it was when the tests here are done."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub.utils._http import default_client_factory


@pytest.fixture(autouse=True)
def real_client() -> Iterator[None]:
    yield
    huggingface_hub.set_client_factory(default_client_factory)
