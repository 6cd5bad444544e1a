"""Every RPC of the cache over a real socket, on the embedded store, with a small encoder declared here."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY, dial, memory_telemetry, running
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder, Vector
from services.cache.feedback import Evidence
from services.cache.feedback_journal import FeedbackJournal
from services.cache.flights import FlightBoard
from services.cache.namespaces import NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.reports import Reports
from services.cache.servicer import Board, CacheServicer, piece_size
from tests.cache_verifier import VERIFIER

RULES = NamespacePolicy(ttl_seconds=100, sharing_user_count=1)

NAME = "tenth.cache.v1.CacheService"
LEASE_TTL = 1.0
Lookup = cache_pb2.LookupCompletionRequest
Store = cache_pb2.StoreCompletionRequest


class WordEncoder:
    """Bags of hashed words: texts with the same words are near, others are not."""

    dimension = 64
    precision = "fp32"

    def __init__(self) -> None:
        self.count = 0

    def encode(self, texts: Sequence[str]) -> Vector:
        self.count += len(texts)
        rows = np.full((len(texts), self.dimension), 1e-3, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().strip("?.!").split():
                row[sum(word.encode()) % self.dimension] += 0.05 if word in ("how", "do", "can", "i") else 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def fits(self, text: str) -> bool:
        return len(text) < 200

    def reads_korean(self) -> bool:
        return False


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Mesh:
    stub: Any
    clock: Clock
    encoder: WordEncoder
    answers: AnswerCache
    board: Board
    spans: Any
    store: QdrantEdgeStore


@pytest.fixture
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        clock, encoder, ids = Clock(), WordEncoder(), itertools.count()
        embedder = Embedder(encoder, "words")
        stack.push_async_callback(embedder.close)
        store = QdrantEdgeStore(tmp_path / "cache", encoder.dimension, 5.0)
        await store.open()
        stack.push_async_callback(store.close)
        policy = CachePolicy()
        answers = AnswerCache(
            store, embedder, policy, clock, namespaces=Namespaces(RULES),
            verifier=VERIFIER, error_factor=lambda *_: 1.0,
            max_entry_count=40, memory_entry_count=10, memory_bytes=10**6,
            memory_seconds=0,
        )  # fmt: skip
        board: Board = FlightBoard(getattr(request, "param", LEASE_TTL), lambda: f"lease-{next(ids)}", piece_size)
        stack.callback(board.close)
        telemetry, spans = memory_telemetry("cache")
        evidence = Evidence()
        journal = FeedbackJournal(tmp_path, evidence)
        await journal.open()
        stack.push_async_callback(journal.close)
        reports = Reports(answers, evidence, journal, lambda tenant, namespace: NamespacePolicy(), telemetry.meter)
        servicer = CacheServicer(answers, board, policy, store.name, reports)
        register = cache_pb2_grpc.add_CacheServiceServicer_to_server
        address = await stack.enter_async_context(running(register, servicer, NAME, tmp_path, telemetry=telemetry))
        channel = dial(address)
        stack.push_async_callback(channel.close)
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        yield Mesh(stub, clock, encoder, answers, board, spans, store)


def ask(text: str, **fields: Any) -> chat_pb2.CompletionRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.CompletionRequest(messages=[message], **fields)


def answer(text: str = "Press the button.", **fields: Any) -> chat_pb2.Completion:
    values: dict[str, Any] = {
        "message": chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)]),
        "finish_reason": chat_pb2.FINISH_REASON_STOP,
        "model": "m",
        "tier": chat_pb2.TIER_MEDIUM,
        **fields,
    }
    completion = chat_pb2.Completion(**values)
    completion.usage.output_token_count = 7
    return completion


async def put(cache: Mesh, request: chat_pb2.CompletionRequest, completion: chat_pb2.Completion | None = None) -> str:
    looked = await cache.stub.LookupCompletion(Lookup(request=request))
    assert looked.WhichOneof("outcome") == "lease", looked
    stored = await cache.stub.StoreCompletion(
        Store(
            lease_id=looked.lease.lease_id,
            request=request,
            completion=completion or answer(),
            embedding=looked.embedding if looked.HasField("embedding") else None,
        )
    )
    assert stored.entry_id, stored.not_stored_reason
    return str(stored.entry_id)


async def outcome(cache: Mesh, request: chat_pb2.CompletionRequest, **fields: Any) -> str:
    looked = await cache.stub.LookupCompletion(Lookup(request=request, **fields))
    return str(looked.WhichOneof("outcome"))


RESET = "How do I reset the alarm?"


async def test_miss_store_exact_hit_without_embedding(cache: Mesh) -> None:
    entry_id = await put(cache, ask(RESET))
    assert cache.encoder.count == 1, "lookup and store embed once"
    looked = await cache.stub.LookupCompletion(Lookup(request=ask(RESET)))
    assert looked.hit.kind == cache_pb2.HIT_KIND_EXACT
    assert looked.hit.completion == answer()
    assert looked.hit.entry_id == entry_id
    assert looked.hit.similarity == 1
    assert looked.hit.create_time.ToSeconds() == 1_000_000
    assert not looked.HasField("embedding")
    assert cache.encoder.count == 1
    span = next(span for span in reversed(cache.spans.get_finished_spans()) if span.name.endswith("LookupCompletion"))
    assert span.attributes["tenth.cache.outcome"] == "hit"
    assert span.attributes["tenth.cache.kind"] == "exact"
    assert span.attributes["tenth.cache.entry_id"] == entry_id


async def test_a_paraphrase_hits_and_a_different_question_does_not(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    looked = await cache.stub.LookupCompletion(Lookup(request=ask("How can I reset the alarm?")))
    assert looked.hit.kind == cache_pb2.HIT_KIND_SEMANTIC
    assert 0.95 < looked.hit.similarity < 1
    assert looked.embedding.embedder == "words@2-fp32"
    assert len(looked.embedding.values) == 64
    assert await outcome(cache, ask("How do I paint the fence?")) == "lease"
    assert await outcome(cache, ask("How do I not reset the alarm?")) == "lease"
    assert await outcome(cache, ask("How can I reset the alarm?", namespace="other")) == "lease"
    floor = chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_COMPLEX)
    assert await outcome(cache, ask("How can I reset the alarm?", policy=floor)) == "lease"
    floor.tier_floor = chat_pb2.TIER_MEDIUM
    assert await outcome(cache, ask("Can I reset the alarm?", policy=floor)) == "hit"


async def test_tenants_never_meet(cache: Mesh) -> None:
    entry_id = await put(cache, ask(RESET))
    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    assert await outcome(cache, ask(RESET)) == "lease"
    assert await outcome(cache, ask("How can I reset the alarm?")) == "lease"
    report = cache_pb2.ReportAnswerQualityRequest(entry_id=entry_id, correct=False)
    assert not (await cache.stub.ReportAnswerQuality(report)).retired
    for deletion in ({"all": True}, {"entry_ids": [entry_id]}):
        deleted = await cache.stub.InvalidateEntries(cache_pb2.InvalidateEntriesRequest(**deletion))
        assert deleted.entry_count == 0
    inspected = await cache.stub.InspectLookup(cache_pb2.InspectLookupRequest(request=ask(RESET)))
    assert inspected.outcome == "miss"
    assert not inspected.candidates
    assert (await cache.stub.GetStats(cache_pb2.GetStatsRequest())).entry_count == 0
    key = inspected.exact_key
    set_identity(TEST_IDENTITY)
    own = (await cache.stub.InspectLookup(cache_pb2.InspectLookupRequest(request=ask(RESET)))).exact_key
    assert own != key
    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    with pytest.raises(TenthError) as caught:  # A stolen flight id: the answer is still not the thief's.
        await follow(cache, f"{own}.x")
    assert caught.value.reason == "FLIGHT_GONE"


async def follow(cache: Mesh, flight_id: str) -> list[cache_pb2.FollowCompletionResponse]:
    request = cache_pb2.FollowCompletionRequest(flight_id=flight_id)
    return [event async for event in cache.stub.FollowCompletion(request)]


@pytest.mark.parametrize("cache", [30.0], indirect=True)
async def test_two_hundred_identical_requests_one_lease(cache: Mesh) -> None:
    request = ask(RESET)
    looked = await asyncio.gather(*(cache.stub.LookupCompletion(Lookup(request=request)) for _ in range(201)))
    leases = [item.lease for item in looked if item.WhichOneof("outcome") == "lease"]
    flights = [item.follow.flight_id for item in looked if item.WhichOneof("outcome") == "follow"]
    assert (len(leases), len(flights)) == (1, 200)
    followers = [asyncio.create_task(follow(cache, flight)) for flight in flights]
    await asyncio.sleep(0.1)
    await cache.stub.StoreCompletion(Store(lease_id=leases[0].lease_id, request=request, completion=answer()))
    for follower in followers:
        (event,) = await follower
        assert event.finished == answer()
    assert await outcome(cache, request) == "hit"
    assert cache.encoder.count == 1


async def lease_and_flight(cache: Mesh, request: chat_pb2.CompletionRequest) -> tuple[str, str]:
    lease = (await cache.stub.LookupCompletion(Lookup(request=request))).lease.lease_id
    flight = (await cache.stub.LookupCompletion(Lookup(request=request))).follow.flight_id
    assert lease
    assert flight
    return lease, flight


async def until_followed(cache: Mesh, flight_id: str, *, pieces: int = 0) -> None:
    """Wait until somebody follows a flight, and so many pieces of it were published."""
    async with asyncio.timeout(10):
        while True:
            flight = cache.board._flights[flight_id]
            if flight.followers and len(flight.pieces) >= pieces:
                return
            await asyncio.sleep(0.005)


async def test_publish_and_follow_live(cache: Mesh) -> None:
    request = ask(RESET)
    lease, flight = await lease_and_flight(cache, request)
    pieces: asyncio.Queue[cache_pb2.PublishCompletionRequest | None] = asyncio.Queue()

    async def stream() -> AsyncIterator[cache_pb2.PublishCompletionRequest]:
        yield cache_pb2.PublishCompletionRequest(lease_id=lease)
        while (piece := await pieces.get()) is not None:
            yield piece

    publishing = asyncio.create_task(cache.stub.PublishCompletion(stream()))
    pieces.put_nowait(cache_pb2.PublishCompletionRequest(delta=chat_pb2.CompletionDelta(text="Press ")))
    following = asyncio.create_task(follow(cache, flight))
    await asyncio.sleep(1.5 * LEASE_TTL)  # Longer than a lease without a stream.
    pieces.put_nowait(cache_pb2.PublishCompletionRequest(delta=chat_pb2.CompletionDelta(text="the button.")))
    pieces.put_nowait(cache_pb2.PublishCompletionRequest(finished=answer()))
    pieces.put_nowait(None)
    assert (await publishing).follower_count == 1
    first, second, last = await following
    assert first.delta.text + second.delta.text == "Press the button."
    assert last.finished == answer()
    stored = await cache.stub.StoreCompletion(Store(lease_id=lease, request=request, completion=answer()))
    assert stored.entry_id
    again = await cache.stub.StoreCompletion(Store(lease_id=lease, request=request, completion=answer()))
    assert again == stored, "idempotent by lease"


async def test_a_publisher_that_breaks_off_promotes_a_follower(cache: Mesh) -> None:
    lease, flight = await lease_and_flight(cache, ask(RESET))

    async def stream() -> AsyncIterator[cache_pb2.PublishCompletionRequest]:
        yield cache_pb2.PublishCompletionRequest(lease_id=lease, delta=chat_pb2.CompletionDelta(text="Pre"))
        await asyncio.sleep(60)

    publishing = asyncio.create_task(cache.stub.PublishCompletion(stream()))
    following = asyncio.create_task(follow(cache, flight))
    await until_followed(cache, flight, pieces=1)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    events = await asyncio.wait_for(following, 5)
    assert events[-1].promoted.lease_id not in ("", lease)
    assert events[-1].promoted.ttl.ToMilliseconds() == int(LEASE_TTL * 1000)


async def test_a_stream_without_finished_and_a_lost_lease_are_typed(cache: Mesh) -> None:
    lease, _ = await lease_and_flight(cache, ask(RESET))

    async def stream(lease_id: str) -> AsyncIterator[cache_pb2.PublishCompletionRequest]:
        yield cache_pb2.PublishCompletionRequest(lease_id=lease_id)

    for lease_id, reason in ((lease, "PUBLISH_UNFINISHED"), (lease, "LEASE_GONE"), ("", "REQUIRED_FIELD")):
        with pytest.raises(TenthError) as caught:
            await cache.stub.PublishCompletion(stream(lease_id))
        assert caught.value.reason == reason


async def test_an_expired_lease_and_a_released_one_promote(cache: Mesh) -> None:
    lease, flight = await lease_and_flight(cache, ask(RESET))
    (event,) = await asyncio.wait_for(follow(cache, flight), 5)
    heir = event.promoted.lease_id
    assert heir not in ("", lease)
    following = asyncio.create_task(follow(cache, flight))
    await until_followed(cache, flight)
    kept = await cache.stub.ReleaseLease(cache_pb2.ReleaseLeaseRequest(lease_id=heir, only_if_unfollowed=True))
    assert (kept.released, kept.follower_count) == (False, 1)
    released = await cache.stub.ReleaseLease(cache_pb2.ReleaseLeaseRequest(lease_id=heir))
    assert (released.released, released.follower_count) == (True, 1)
    assert (await following)[0].promoted.lease_id
    # The first leader is merely late: its answer is kept all the same.
    late = await cache.stub.StoreCompletion(Store(lease_id=lease, request=ask(RESET), completion=answer()))
    assert late.entry_id


async def test_following_what_is_over(cache: Mesh) -> None:
    request = ask(RESET)
    lease, flight = await lease_and_flight(cache, request)
    await cache.stub.StoreCompletion(Store(lease_id=lease, request=request, completion=answer()))
    cache.board.close()
    (event,) = await follow(cache, flight)
    assert event.finished == answer(), "from the store"
    with pytest.raises(TenthError) as caught:
        await follow(cache, "nothing.1")
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "FLIGHT_GONE")


@pytest.mark.parametrize(
    ("fields", "completion", "share_only", "reason"),
    [
        ({}, answer(), True, "share_only"),
        ({}, answer(finish_reason=chat_pb2.FINISH_REASON_LENGTH), False, "truncated"),
        ({"policy": chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_READ)}, answer(), False, "cache_mode_read"),
    ],
)
async def test_what_is_shared_and_not_stored(
    cache: Mesh, fields: dict[str, Any], completion: chat_pb2.Completion, share_only: bool, reason: str
) -> None:
    request = ask(RESET, **fields)
    lease, flight = await lease_and_flight(cache, request)
    following = asyncio.create_task(follow(cache, flight))
    await until_followed(cache, flight)
    stored = await cache.stub.StoreCompletion(
        Store(lease_id=lease, request=request, completion=completion, share_only=share_only)
    )
    assert (stored.entry_id, stored.not_stored_reason) == ("", reason)
    assert (await following)[-1].finished == completion
    assert await outcome(cache, request) == "lease"


async def test_modes(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    modes = {
        chat_pb2.CACHE_MODE_OFF: "bypass",
        chat_pb2.CACHE_MODE_READ: "hit",
        chat_pb2.CACHE_MODE_WRITE: "lease",
        chat_pb2.CACHE_MODE_READ_WRITE: "hit",
    }
    for mode, expected in modes.items():
        request = ask(RESET, policy=chat_pb2.RequestPolicy(cache_mode=mode))
        assert await outcome(cache, request) == expected
    write = ask(RESET, policy=chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_WRITE))
    await cache.stub.StoreCompletion(Store(request=write, completion=answer("New.")))
    looked = await cache.stub.LookupCompletion(Lookup(request=ask(RESET)))
    assert looked.hit.completion == answer("New.")


async def test_who_comes_back_hours_later_takes_no_lease_and_follows_nobody(cache: Mesh) -> None:
    looked = await cache.stub.LookupCompletion(Lookup(request=ask(RESET), without_lease=True))
    assert looked.WhichOneof("outcome") == "lease"
    assert looked.lease.lease_id == ""
    assert looked.embedding.values
    assert cache.board.count == 0
    write = ask(RESET, policy=chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_WRITE))
    assert (await cache.stub.LookupCompletion(Lookup(request=write, without_lease=True))).lease.lease_id == ""
    assert cache.board.count == 0
    # Beside a flight, too; and the question is looked for by its meaning although the same one is in the air.
    assert await outcome(cache, ask(RESET)) == "lease"
    beside = await cache.stub.LookupCompletion(Lookup(request=ask(RESET), without_lease=True))
    assert (beside.WhichOneof("outcome"), beside.lease.lease_id) == ("lease", "")
    assert beside.embedding == looked.embedding
    assert cache.board.count == 1
    await cache.stub.StoreCompletion(Store(request=ask(RESET), completion=answer("Hold it down.")))
    assert await outcome(cache, ask(RESET), without_lease=True) == "hit"
    stats = await cache.stub.GetStats(cache_pb2.GetStatsRequest())
    assert (stats.exact_hit_count, stats.miss_count, stats.follow_count) == (1, 4, 0)


async def test_dry_run_and_inspect_change_nothing(cache: Mesh) -> None:
    assert await outcome(cache, ask(RESET), dry_run=True) == "lease"
    assert cache.board.count == 0
    await put(cache, ask(RESET))
    assert await outcome(cache, ask(RESET), dry_run=True) == "hit"
    inspected = await cache.stub.InspectLookup(
        cache_pb2.InspectLookupRequest(request=ask("How do I not reset the alarm?"), candidate_count=3)
    )
    assert inspected.outcome == "miss"
    assert "negation" in inspected.reason, "a guard's word before the low probability"
    (candidate,) = inspected.candidates
    assert candidate.question == RESET
    assert not candidate.would_serve
    assert any("negation" in reason for reason in candidate.reasons)
    assert inspected.embedded_text == "How do I not reset the alarm?"
    assert len(inspected.exact_key) == 64
    bypassed = await cache.stub.InspectLookup(cache_pb2.InspectLookupRequest(request=ask("Will it rain tonight?")))
    assert (bypassed.outcome, bypassed.reason) == ("bypass", "time_bound")
    stats = await cache.stub.GetStats(cache_pb2.GetStatsRequest())
    assert (stats.exact_hit_count, stats.semantic_hit_count) == (0, 0)


async def test_stats(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    await outcome(cache, ask(RESET))
    await outcome(cache, ask("How can I reset the alarm?"))
    await outcome(cache, ask("What is the weather?"))
    await outcome(cache, ask("Paint a fence"))
    await outcome(cache, ask("Paint a fence"))
    stats = await cache.stub.GetStats(cache_pb2.GetStatsRequest(namespace="default"))
    assert (stats.entry_count, stats.exact_hit_count, stats.semantic_hit_count) == (1, 1, 1)
    assert (stats.miss_count, stats.follow_count) == (2, 1)
    assert dict(stats.bypass_counts) == {"time_bound": 1}
    assert (stats.embedder, stats.store) == ("words@2-fp32", "qdrant_edge")
    assert (await cache.stub.GetStats(cache_pb2.GetStatsRequest(namespace="x"))).miss_count == 0


async def test_a_neighbour_deleted_while_it_is_judged_is_a_miss(cache: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(cache, ask("How do I reset the lamp?"))
    again = Lookup(request=ask("How can I reset the lamp?"), dry_run=True)
    looked = await cache.stub.LookupCompletion(again)
    assert looked.hit.completion.message.parts[0].text == "Press the button."
    search = cache.store.search

    async def search_and_delete(*arguments: Any) -> Any:
        found = await search(*arguments)
        assert found
        await cache.store.delete(())
        return found

    monkeypatch.setattr(cache.store, "search", search_and_delete)
    assert (await cache.stub.LookupCompletion(again)).WhichOneof("outcome") == "lease"


async def test_entries_expire_age_and_are_swept(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    cache.clock.now += 50
    policy = chat_pb2.RequestPolicy()
    policy.cache_max_age.FromSeconds(49)
    assert await outcome(cache, ask(RESET, policy=policy)) == "lease"
    policy.cache_max_age.FromSeconds(51)
    assert await outcome(cache, ask(RESET, policy=policy)) == "hit"
    cache.clock.now += 50
    await asyncio.sleep(1.2 * LEASE_TTL)
    assert await outcome(cache, ask(RESET)) == "lease"
    assert await outcome(cache, ask("How can I reset the alarm?")) == "lease"
    assert await cache.store.count(()) == 1
    await cache.answers.sweep()
    assert await cache.store.count(()) == 0


async def test_the_least_recently_used_go_first(cache: Mesh) -> None:
    words = [f"{left}{right}" for left in "abcdefgh" for right in "vwxyz"]
    for word in words:
        cache.clock.now += 0.1
        await put(cache, ask(f"Explain {word}", namespace=word))
    cache.clock.now += 1
    assert await outcome(cache, ask(f"Explain {words[0]}", namespace=words[0])) == "hit"
    for word in ("one more", "another more"):
        await put(cache, ask(f"Explain {word}", namespace=word))
    await cache.answers.sweep()
    assert await cache.store.count(()) == 40
    assert await outcome(cache, ask(f"Explain {words[0]}", namespace=words[0])) == "hit", "used lately"
    assert await outcome(cache, ask(f"Explain {words[1]}", namespace=words[1])) == "lease", "evicted"


async def test_invalidate_by_filter_with_dry_run(cache: Mesh) -> None:
    chunk = chat_pb2.RetrievedChunk(text="The alarm has a button.", document_id="manual")
    one = await put(cache, ask(RESET, retrieved_chunks=[chunk], tags={"team": "a", "x": "1"}))
    await put(cache, ask("Paint a fence", namespace="garden", user_id="u1"))
    cases = [
        (cache_pb2.InvalidateEntriesRequest(document_id="manual"), 1),
        (cache_pb2.InvalidateEntriesRequest(document_id="other"), 0),
        (cache_pb2.InvalidateEntriesRequest(tags={"team": "a"}), 1),
        (cache_pb2.InvalidateEntriesRequest(tags={"team": "a", "x": "2"}), 0),
        (cache_pb2.InvalidateEntriesRequest(namespace="garden"), 1),
        (cache_pb2.InvalidateEntriesRequest(namespace="garden", document_id="manual"), 0),
        (cache_pb2.InvalidateEntriesRequest(entry_ids=[one]), 1),
        (cache_pb2.InvalidateEntriesRequest(all=True), 2),
    ]
    for request, count in cases:
        request.dry_run = True
        assert (await cache.stub.InvalidateEntries(request)).entry_count == count
    request = cases[0][0]
    request.dry_run = False
    assert (await cache.stub.InvalidateEntries(request)).entry_count == 1
    assert await outcome(cache, ask(RESET, retrieved_chunks=[chunk])) == "lease"
    assert (await cache.stub.DeleteUserEntries(cache_pb2.DeleteUserEntriesRequest(user_id="u1"))).entry_count == 1
    assert await outcome(cache, ask("Paint a fence", namespace="garden")) == "lease"


async def test_a_wrong_answer_is_served_no_more(cache: Mesh) -> None:
    entry_id = await put(cache, ask(RESET))
    assert not (
        await cache.stub.ReportAnswerQuality(cache_pb2.ReportAnswerQualityRequest(entry_id=entry_id, correct=True))
    ).retired
    assert await outcome(cache, ask(RESET)) == "hit"
    assert (await cache.stub.ReportAnswerQuality(cache_pb2.ReportAnswerQualityRequest(entry_id=entry_id))).retired
    assert await outcome(cache, ask(RESET)) == "lease"
    assert not (await cache.stub.ReportAnswerQuality(cache_pb2.ReportAnswerQualityRequest(entry_id=entry_id))).retired


async def test_a_miss_of_a_suspended_namespace_says_so_on_its_span(cache: Mesh) -> None:
    for number in range(3):
        report = cache_pb2.ReportAnswerQualityRequest(
            entry_id=await put(cache, ask(RESET)), report_id=f"semantic:{number}"
        )
        reply = await cache.stub.ReportAnswerQuality(report)
    assert reply.namespace_suspended
    assert await outcome(cache, ask(RESET)) == "lease"
    span = next(span for span in reversed(cache.spans.get_finished_spans()) if span.name.endswith("LookupCompletion"))
    assert "3 of 3 lookups by meaning were reported wrong" in span.attributes["tenth.cache.suspended"]
    assert "serves exact hits only" in span.attributes["tenth.cache.reason"]
    assert await outcome(cache, ask(RESET, namespace="other")) == "lease"
    span = next(span for span in reversed(cache.spans.get_finished_spans()) if span.name.endswith("LookupCompletion"))
    assert "tenth.cache.suspended" not in span.attributes


async def test_long_and_foreign_questions_hit_exactly_only(cache: Mesh) -> None:
    for text in ("reset the alarm " * 40, "アラームをリセットする"):
        await put(cache, ask(text))
        assert await outcome(cache, ask(text)) == "hit"
        assert await outcome(cache, ask(text + "please")) == "lease"
    assert cache.encoder.count == 0


async def test_embed_in_order_and_limits(cache: Mesh) -> None:
    embedded = await cache.stub.Embed(cache_pb2.EmbedRequest(texts=["a b", "c", "a b"]))
    assert [item.embedder for item in embedded.embeddings] == ["words@2-fp32"] * 3
    assert embedded.embeddings[0] == embedded.embeddings[2]
    assert sum(value * value for value in embedded.embeddings[1].values) == pytest.approx(1, abs=1e-5)
    assert embedded.compute_micros >= 0
    for request, reason, field in (
        (cache_pb2.EmbedRequest(texts=["x"] * 513), "EMBED_TOO_MANY_TEXTS", "texts"),
        (cache_pb2.EmbedRequest(texts=["x", "x" * 32_769]), "EMBED_TEXT_TOO_LONG", "texts[1]"),
    ):
        with pytest.raises(TenthError) as caught:
            await cache.stub.Embed(request)
        assert (caught.value.code, caught.value.reason, caught.value.field) == (Code.INVALID_ARGUMENT, reason, field)


ENTRY = "6ba9cf06-7d24-4c0c-9a0d-4b2f4d0a6c51"
BAD = [
    ("LookupCompletion", Lookup(), "REQUIRED_FIELD", "request.messages"),
    ("LookupCompletion", Lookup(request=ask("x", namespace="n" * 129)), "INVALID_FIELD", "request.namespace"),
    (
        "LookupCompletion",
        Lookup(request=chat_pb2.CompletionRequest(messages=[chat_pb2.ChatMessage()])),
        "INVALID_FIELD",
        "request.messages[0].role",
    ),
    ("StoreCompletion", Store(request=ask("x")), "REQUIRED_FIELD", "completion"),
    ("ReleaseLease", cache_pb2.ReleaseLeaseRequest(), "REQUIRED_FIELD", "lease_id"),
    ("ReportAnswerQuality", cache_pb2.ReportAnswerQualityRequest(), "REQUIRED_FIELD", "entry_id"),
    ("ReportAnswerQuality", cache_pb2.ReportAnswerQualityRequest(entry_id="x"), "INVALID_FIELD", "entry_id"),
    (
        "InspectLookup",
        cache_pb2.InspectLookupRequest(request=ask("x"), candidate_count=101),
        "INVALID_FIELD",
        "candidate_count",
    ),
    ("InvalidateEntries", cache_pb2.InvalidateEntriesRequest(), "INVALID_FIELD", "all"),
    ("InvalidateEntries", cache_pb2.InvalidateEntriesRequest(entry_ids=[ENTRY, "x"]), "INVALID_FIELD", "entry_ids[1]"),
    ("DeleteUserEntries", cache_pb2.DeleteUserEntriesRequest(), "REQUIRED_FIELD", "user_id"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "request_", "reason", "field"), BAD)
async def test_bad_requests_name_their_field(cache: Mesh, method: str, request_: Any, reason: str, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        await getattr(cache.stub, method)(request_)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (Code.INVALID_ARGUMENT, reason, field)


async def test_a_lease_is_for_its_own_request(cache: Mesh) -> None:
    lease, _ = await lease_and_flight(cache, ask(RESET))
    with pytest.raises(TenthError) as caught:
        await cache.stub.StoreCompletion(Store(lease_id=lease, request=ask("Other"), completion=answer()))
    assert caught.value.reason == "LEASE_MISMATCH"


async def test_a_store_that_is_down_is_unavailable_and_followers_still_get_the_answer(cache: Mesh) -> None:
    request = ask(RESET)
    lease, flight = await lease_and_flight(cache, request)
    following = asyncio.create_task(follow(cache, flight))
    await until_followed(cache, flight)
    await cache.store.close()
    with pytest.raises(TenthError) as caught:
        await cache.stub.StoreCompletion(Store(lease_id=lease, request=request, completion=answer()))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert (await following)[0].finished == answer()
    with pytest.raises(TenthError) as caught:
        await outcome(cache, ask("Another"))
    assert caught.value.code is Code.UNAVAILABLE


async def test_tool_calls_reasoning_and_usage_come_back_whole(cache: Mesh) -> None:
    completion = answer(finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS)
    completion.message.reasoning = "because"
    completion.message.tool_calls.add(id="c1", name="search", arguments_json=json.dumps({"q": "한글"}))
    completion.baseline_input_token_count = 12
    request = ask(RESET, tools=[chat_pb2.Tool(name="search")])
    await put(cache, request, completion)
    assert (await cache.stub.LookupCompletion(Lookup(request=request))).hit.completion == completion
