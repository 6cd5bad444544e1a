"""Single flight with real processes: killed leaders and replicas, slow leaders, 200 followers, two replicas."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY, dial
from tests.integration.cache.test_cache_process import ask, process
from tests.integration.orchestrator.orchestrator_fakes import Mesh, eventually, generated, running_mesh, until
from tests.integration.orchestrator.orchestrator_fakes import ask as ask_orchestrator

FOLLOWERS = 200
PB = cache_pb2
START_SECONDS = 120

LEADER = """
import asyncio, sys
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2
from mesh.testing import dial
from tests.integration.cache.test_cache_process import ask

async def main():
    async with dial(sys.argv[1]) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        request = cache_pb2.LookupCompletionRequest(request=ask(sys.argv[2]))
        looked = await stub.LookupCompletion(request, timeout=60)
        print(looked.lease.lease_id, flush=True)

        async def pieces():
            yield cache_pb2.PublishCompletionRequest(lease_id=looked.lease.lease_id)
            while line := await asyncio.to_thread(sys.stdin.readline):
                yield cache_pb2.PublishCompletionRequest(delta=chat_pb2.CompletionDelta(text=line.strip()))

        await stub.PublishCompletion(pieces())

asyncio.run(main())
"""


def whole(text: str) -> chat_pb2.Completion:
    return chat_pb2.Completion(
        message=chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)]),
        finish_reason=chat_pb2.FINISH_REASON_STOP,
        model="m",
        tier=chat_pb2.TIER_SIMPLE,
    )


class Leader:
    """A leader in a process of its own; ``say`` has it publish a piece."""

    def __init__(self, child: asyncio.subprocess.Process, lease_id: str) -> None:
        self.child, self.lease_id = child, lease_id

    @classmethod
    async def start(cls, address: str, question: str) -> Leader:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LEADER, address, question, stdin=pipe, stdout=pipe
        )
        assert child.stdout is not None
        lease_id = (await child.stdout.readline()).decode().strip()
        assert lease_id
        return cls(child, lease_id)

    async def say(self, text: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{text}\n".encode())
        await self.child.stdin.drain()

    async def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        await self.child.wait()


class Follower:
    """One caller that was told to follow. ``heard`` is set by its first piece."""

    def __init__(self, stub: Any, flight_id: str) -> None:
        self.heard = asyncio.Event()
        self.pieces: list[str] = []
        self.task = asyncio.create_task(self._follow(stub, flight_id))

    async def _follow(self, stub: Any, flight_id: str) -> Any:
        async for event in stub.FollowCompletion(PB.FollowCompletionRequest(flight_id=flight_id)):
            if event.WhichOneof("event") != "delta":
                return event
            self.pieces.append(event.delta.text)
            self.heard.set()
        raise AssertionError("a flight without an end")


async def followers(stub: Any, question: str, count: int) -> list[Follower]:
    request = PB.LookupCompletionRequest(request=ask(question))
    looked = await asyncio.gather(*(stub.LookupCompletion(request, timeout=60) for _ in range(count)))
    assert {item.WhichOneof("outcome") for item in looked} == {"follow"}
    return [Follower(stub, item.follow.flight_id) for item in looked]


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, Any]]:
    # A lease outlives every pause of a busy machine here: what passes it on is the break, not the clock.
    async with process(tmp_path, TENTH_CACHE_LEASE_TTL_SECONDS="60") as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
        yield child, address, cache_pb2_grpc.CacheServiceStub(channel)


async def test_a_leader_that_is_killed_hands_over_and_all_two_hundred_get_one_whole_answer(cache: Any) -> None:
    _, address, stub = cache
    question = "Which plants like shade?"
    leader = await Leader.start(address, question)
    waiting = await followers(stub, question, FOLLOWERS)
    await leader.say("Fer")
    await asyncio.gather(*(each.heard.wait() for each in waiting))
    await leader.kill()
    done, rest = await asyncio.wait([each.task for each in waiting], return_when=asyncio.FIRST_COMPLETED)
    (heir,) = done
    lease_id = heir.result().promoted.lease_id
    assert lease_id not in ("", leader.lease_id)

    async def pieces() -> AsyncIterator[PB.PublishCompletionRequest]:
        yield PB.PublishCompletionRequest(lease_id=lease_id)
        yield PB.PublishCompletionRequest(delta=chat_pb2.CompletionDelta(text="Mosses."))
        yield PB.PublishCompletionRequest(finished=whole("Mosses."))

    published = await stub.PublishCompletion(pieces(), timeout=60)
    ends = await asyncio.gather(*rest)
    assert len(ends) == FOLLOWERS - 1
    assert all(end.finished == whole("Mosses.") for end in ends)
    assert {tuple(each.pieces) for each in waiting} == {("Fer",)}, "no pieces of two leaders are mixed"
    assert published.follower_count == FOLLOWERS
    request = PB.StoreCompletionRequest(lease_id=lease_id, request=ask(question), completion=whole("Mosses."))
    assert (await stub.StoreCompletion(request, timeout=60)).entry_id

    async def late() -> AsyncIterator[PB.PublishCompletionRequest]:
        yield PB.PublishCompletionRequest(lease_id=leader.lease_id, finished=whole("Ferns."))

    with pytest.raises(TenthError) as caught:
        await stub.PublishCompletion(late(), timeout=60)
    assert caught.value.reason == "LEASE_GONE"
    looked = await stub.LookupCompletion(PB.LookupCompletionRequest(request=ask(question)), timeout=60)
    assert looked.hit.completion == whole("Mosses.")


async def led_and_followed(stub: Any, address: str, question: str) -> tuple[Leader, Follower]:
    """A leader whose publish stream is open, and who follows it; again where opening it outlasted the lease."""
    lookup = PB.LookupCompletionRequest(request=ask(question))
    while True:
        leader = await Leader.start(address, question)
        looked = await stub.LookupCompletion(lookup, timeout=60)
        if looked.WhichOneof("outcome") == "follow":
            follower = Follower(stub, looked.follow.flight_id)
            await leader.say("Deep")
            heard = asyncio.create_task(follower.heard.wait())
            await asyncio.wait([heard, follower.task], return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
            if follower.heard.is_set():
                return leader, follower
            lease_id = (await follower.task).promoted.lease_id
        else:
            lease_id = looked.lease.lease_id
        await leader.kill()
        await stub.ReleaseLease(PB.ReleaseLeaseRequest(lease_id=lease_id), timeout=60)


async def test_a_slow_leader_keeps_its_lease_while_it_publishes(tmp_path: Path) -> None:
    question = "How deep do roots of oaks go?"
    async with process(tmp_path, TENTH_CACHE_LEASE_TTL_SECONDS="0.5") as (_, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        lookup = PB.LookupCompletionRequest(request=ask(question))
        leader, follower = await led_and_followed(stub, address, question)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < 2.0:  # Four lease times of silence, seen by the cache as well.
            looked = await stub.LookupCompletion(lookup, timeout=60)
            assert looked.WhichOneof("outcome") == "follow"
            await asyncio.sleep(0.1)
        await leader.say("er")
        await until(lambda: follower.pieces == ["Deep", "er"], 60)
        assert not follower.task.done()
        request = PB.StoreCompletionRequest(lease_id=leader.lease_id, request=ask(question), completion=whole("Deeper"))
        assert (await stub.StoreCompletion(request, timeout=60)).entry_id
        assert (await follower.task).finished == whole("Deeper")
        await leader.kill()


async def test_followers_of_a_killed_replica_are_told_and_find_a_fresh_one(cache: Any) -> None:
    child, address, stub = cache
    question = "When do swifts leave?"
    leader = await Leader.start(address, question)
    waiting = await followers(stub, question, 50)
    await leader.say("In")
    await asyncio.gather(*(each.heard.wait() for each in waiting))
    child.send_signal(signal.SIGKILL)
    ends = await asyncio.gather(*(each.task for each in waiting), return_exceptions=True)
    assert all(isinstance(end, TenthError) and end.code is Code.UNAVAILABLE for end in ends)
    await leader.kill()


# The same through the orchestrator: what its callers see.


def answers_when(event: asyncio.Event) -> Callable[[Any], Any]:
    async def answer(request: Any) -> Any:
        await event.wait()
        return generated("In August.")

    return answer


async def replicas(stack: AsyncExitStack, tmp_path: Path, count: int) -> dict[str, Any]:
    """Cache processes by address, each with a data directory of its own."""
    started = {}
    for number in range(count):
        folder = tmp_path / f"cache-{number}"
        folder.mkdir()
        callers = folder / "mesh-callers.yaml"
        callers.write_text(yaml.safe_dump({"callers": [], "services": {"test": ["*"], "orchestrator": ["*"]}}))
        child, address = await stack.enter_async_context(
            process(folder, TENTH_CACHE_LEASE_TTL_SECONDS="60", TENTH_CALLERS_FILE=str(callers))
        )
        channel = await stack.enter_async_context(dial(address))
        started[address] = (child, channel)
    for _, channel in started.values():
        await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
    return started


async def counts(started: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Misses and followers of each replica that is up."""
    set_identity(TEST_IDENTITY)
    found = {}
    for address, (child, channel) in started.items():
        if child.returncode is None:
            stats = await cache_pb2_grpc.CacheServiceStub(channel).GetStats(PB.GetStatsRequest(), timeout=60)
            found[address] = (stats.miss_count, stats.follow_count)
    return found


def followed(found: dict[str, tuple[int, int]]) -> int:
    return sum(follow for _, follow in found.values())


def text_of(reply: Any) -> str:
    return "".join(part.text for part in reply.completion.message.parts)


async def crowd(mesh: Mesh, size: int, **fields: Any) -> list[asyncio.Task[Any]]:
    requests = [ask_orchestrator("When do swifts leave?", **fields) for _ in range(size)]
    return [asyncio.create_task(mesh.generate(request, timeout=300)) for request in requests]


async def test_two_hundred_callers_cost_one_generation_and_two_replicas_share_no_question(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        started = await replicas(stack, tmp_path, 2)
        mesh = await stack.enter_async_context(
            running_mesh(
                tmp_path,
                cache_address=",".join(started),
                lookup_cap_seconds=60,
                background_cap_seconds=60,
                cache_shard_by="request",
            )
        )
        go = asyncio.Event()
        mesh.fakes.on("GenerateText", answers_when(go))
        tasks = await crowd(mesh, FOLLOWERS + 1)
        await eventually(lambda: counts(started), lambda found: followed(found) == FOLLOWERS, 300)
        assert sorted((await counts(started)).values()) == [(0, 0), (1, FOLLOWERS)], "one replica has them all"
        go.set()
        replies = await asyncio.gather(*tasks)
        assert {text_of(reply) for reply in replies} == {"In August."}
        assert mesh.fakes.count("GenerateText") == 1
        kinds = [reply.receipt.facts.cache_hit_kind for reply in replies]
        assert (kinds.count(""), kinds.count("follow")) == (1, FOLLOWERS)


async def test_callers_on_a_replica_that_is_killed_generate_for_themselves(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        started = await replicas(stack, tmp_path, 2)
        mesh = await stack.enter_async_context(
            running_mesh(tmp_path, cache_address=",".join(started), lookup_cap_seconds=60, background_cap_seconds=60)
        )
        go = asyncio.Event()
        mesh.fakes.on("GenerateText", answers_when(go))
        tasks = await crowd(mesh, 10)
        await eventually(lambda: counts(started), lambda found: followed(found) == 9, 300)
        await until(lambda: mesh.fakes.count("GenerateText") == 1, 60)
        (victim,) = [address for address, (misses, _) in (await counts(started)).items() if misses]
        started[victim][0].send_signal(signal.SIGKILL)
        await started[victim][0].wait()
        # Every follower notices by itself and goes to a model.
        await until(lambda: mesh.fakes.count("GenerateText") == 10, 60)
        go.set()
        assert {text_of(reply) for reply in await asyncio.gather(*tasks)} == {"In August."}
        # A namespace of the other replica is answered as before.
        other = next(address for address in started if address != victim)
        for number in range(20):
            first = await mesh.generate(ask_orchestrator("Where to?", namespace=f"n{number}"), timeout=60)
            assert text_of(first) == "In August."
        assert (await counts(started))[other][0] > 0
