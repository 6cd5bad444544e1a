"""A running orchestrator among fakes for every test that asks for ``mesh``; ``start`` makes one with other settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.orchestrator.orchestrator_fakes import Mesh, running_mesh

Start = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(**options: Any) -> Mesh:
            return await stack.enter_async_context(running_mesh(tmp_path, **options))

        yield begin


@pytest.fixture
async def mesh(start: Start) -> Mesh:
    return await start()
