"""Deletions that a lookup or a store crosses, and namespaces without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import services.cache.servicer as servicer_module
from mesh.testing import memory_telemetry
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder
from services.cache.feedback import Evidence
from services.cache.feedback_journal import FeedbackJournal
from services.cache.flights import FlightBoard
from services.cache.keys import ROLE_USER, Message, Question
from services.cache.namespaces import NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.reports import Reports
from services.cache.servicer import CacheServicer
from services.cache.store import Condition, Entry
from tests.cache_verifier import VERIFIER
from tests.integration.cache.test_cache_service import WordEncoder

RULES = NamespacePolicy(ttl_seconds=100, sharing_user_count=1)

QUESTION = Question("acme", "default", (Message(ROLE_USER, (("text", "How do I pay?"),)),), user_id="u")
OF_USER = (Condition("tenant", ("acme",)), Condition("user_id", ("u",)))


class SlowStore(QdrantEdgeStore):
    """A store that reads and acknowledges when it is told to."""

    read, written = asyncio.Event(), asyncio.Event()

    async def get(self, entry_id: str) -> Entry | None:
        found = await super().get(entry_id)
        await self.read.wait()
        return found

    async def put(self, entry: Entry, vector: object) -> None:
        await super().put(entry, vector)  # type: ignore[arg-type]  # Passed on as it is.
        await self.written.wait()


@pytest.fixture
async def answers(tmp_path: Path) -> AsyncIterator[AnswerCache]:
    encoder = WordEncoder()
    embedder = Embedder(encoder, "words")
    store = SlowStore(tmp_path / "cache", encoder.dimension, 5.0)
    store.read, store.written = asyncio.Event(), asyncio.Event()
    await store.open()
    yield AnswerCache(
        store, embedder, CachePolicy(), lambda: 1000.0, namespaces=Namespaces(RULES),
            verifier=VERIFIER, error_factor=lambda *_: 1.0,
            max_entry_count=40, memory_entry_count=10,
        memory_bytes=10**6, memory_seconds=0,
    )  # fmt: skip
    await store.close()
    await embedder.close()


async def keep(answers: AnswerCache) -> Entry:
    return await answers.keep(answers.ask(QUESTION), b"secret", "m", 2, (), None)


def slow(answers: AnswerCache) -> SlowStore:
    store = answers._store
    assert isinstance(store, SlowStore)
    return store


async def test_what_was_read_before_a_deletion_is_not_remembered_after_it(answers: AnswerCache) -> None:
    store, asked = slow(answers), answers.ask(QUESTION)
    store.written.set()
    store.read.set()
    entry = await keep(answers)
    store.read.clear()
    answers._forget(entry.entry_id)
    reading = asyncio.create_task(answers.find_exact(asked.key, "acme", "u"))
    await asyncio.sleep(0.05)
    assert await answers.delete(OF_USER, (), False) == 1
    store.read.set()
    await reading
    assert await answers.find_exact(asked.key, "acme", "u") is None


async def test_what_was_stored_before_a_deletion_is_not_remembered_after_it(answers: AnswerCache) -> None:
    store, asked = slow(answers), answers.ask(QUESTION)
    store.read.set()
    storing = asyncio.create_task(keep(answers))
    while await answers.count(OF_USER) == 0:  # noqa: ASYNC110  (a thread changes it)
        await asyncio.sleep(0.01)
    assert await answers.delete(OF_USER, (), False) == 1
    store.written.set()
    await storing
    assert await answers.find_exact(asked.key, "acme", "u") is None


async def test_counts_are_kept_for_a_bounded_number_of_namespaces(
    answers: AnswerCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servicer_module, "_COUNTED_NAMESPACES", 3)
    evidence, meter = Evidence(), memory_telemetry()[0].meter
    reports = Reports(
        answers, evidence, FeedbackJournal(tmp_path, evidence), lambda tenant, namespace: NamespacePolicy(), meter
    )
    servicer = CacheServicer(answers, FlightBoard(1.0, str, lambda _: 1), CachePolicy(), "test", reports)
    for number in range(20):
        question = replace(QUESTION, namespace=f"n{number}")
        servicer._counts_of("acme", question.namespace)["miss"] += 1
    assert len(servicer._counts) <= 4
    assert sum(counts["miss"] for counts in servicer._counts.values()) == 20
    assert servicer._counts_of("acme", "n19")["miss"] == 1
