"""Who is served from the cache, through the whole mesh: users one by one, and everybody from a curated help centre."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from conftest import PATIENT, started
from rich.console import Console
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from tenth_client import Client
from tenth_client.demo import workload
from tenth_client.demo.__main__ import help_centre_right, import_help_centre, rules_file
from tenth_client.replay import play
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with the demo's rules."""
    folder = tmp_path_factory.mktemp("sharing")
    rules = {"TENTH_CACHE_NAMESPACES_FILE": str(rules_file(folder))}
    async with started(folder, env={"orchestrator": PATIENT, "cache": rules}) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def asking(own: Mesh) -> AsyncIterator[Client]:
    """A client of that mesh."""
    async with Client(own.address("orchestrator"), own.api_key) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def rpc(own: Mesh) -> AsyncIterator[Rpc]:
    """Calls to its services."""
    async with Rpc(own.connection) as connected:
        yield connected


async def stored(rpc: Rpc) -> tuple[int, int]:
    """Entries, and how many of them are for one user alone."""
    request = cache_pb2.GetStatsRequest()
    answer = await rpc.call("cache", cache_pb2_grpc.CacheServiceStub, "GetStats", request)
    return answer.entry_count, answer.private_entry_count


async def until(wanted: tuple[int, int], of: Callable[[], Awaitable[tuple[int, int]]]) -> None:
    """Wait for what happens behind an answer."""
    async with asyncio.timeout(30):
        while True:
            if await of() == wanted:
                return
            await asyncio.sleep(0.05)


async def test_an_answer_is_for_its_user_until_a_second_one_gets_the_same(asking: Client, rpc: Rpc) -> None:
    question = "지하 주차장 출입증 발급 방법 알려줘"
    before, private = await stored(rpc)
    kinds = []
    for user, then in (
        ("ada", (before + 1, private + 1)),
        ("ada", (before + 1, private + 1)),
        ("ben", (before + 1, private)),
        ("cho", (before + 1, private)),
    ):
        answer = await asking.complete(question, user_id=user)
        kinds.append(answer.receipt.facts.cache_hit_kind)
        await until(then, lambda: stored(rpc))
    assert kinds == ["", "exact", "", "exact"], "ben's own answer agreed with ada's, then it was cho's too"


async def test_a_curated_help_centre_answers_customers_in_their_own_words(own: Mesh, asking: Client, rpc: Rpc) -> None:
    console = Console(file=io.StringIO(), width=100)
    await import_help_centre(rpc, own.data_dir, workload.MAX_TOKENS, console)
    assert "120 of 120 stored" in console.file.getvalue()  # type: ignore[attr-defined]

    bodies = [body for body in workload.bodies() if body["tenth"].get("namespace") == workload.HELP_CENTRE]
    positions = [place for place, body in enumerate(workload.bodies()) if body in bodies]
    requests = workload.requests()
    results = await play(asking, [requests[place] for place in positions], concurrency=2)
    assert not any(played.error for played in results)
    kinds = dict.fromkeys(("en", "ko"), 0)
    for body, played in zip(bodies, results, strict=True):
        assert played.receipt is not None
        kinds[body["tenth"]["tags"]["language"]] += played.receipt.facts.cache_hit_kind == "semantic"
    check = help_centre_right(results, bodies)
    assert check.holds, check.text
    assert kinds["en"] > 20, kinds
    assert kinds["ko"] > 10, kinds
