"""Fixtures of the tests of the ingress."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.ingress_server import (
    TOKEN,
    Edge,
    listening_in,
    running,
    told,
)


@pytest.fixture
async def edge(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Edge]:
    """Run an ingress; afterwards, nothing it logged may show a token, and nothing may have been a fault."""
    caplog.set_level("DEBUG")
    with listening_in(monkeypatch) as lines:
        async with running(lines) as started:
            yield started
        text = told(started, caplog)
        assert TOKEN not in text
        assert started.counted("fault") == 0
        assert not [line for line in lines if line["log_level"] in {"error", "critical"}]
        assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
