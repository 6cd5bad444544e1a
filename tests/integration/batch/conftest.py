"""One Temporal for all tests that leave it alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.batch.temporal_dev import TemporalServer


@pytest.fixture(scope="session")
def temporal_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real Temporal server."""
    server = TemporalServer(tmp_path_factory.mktemp("temporal"))
    server.start()
    try:
        yield server.address
    finally:
        server.kill()
