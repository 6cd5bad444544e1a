"""The outcome log on a real SQLite file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from services.router.catalog import Tier
from services.router.decision import Demand, Embedding, Exploration, Needs, Shadow, Strategy
from services.router.outcomes import Completion, Feedback, Outcome, RecordedCandidate, ScoreSource
from services.router.sqlite import LogLimits, OutcomeLog

NOW = 1_700_000_000.0
LIMITS = LogLimits(entries=1000, age_seconds=3600.0, queue_entries=100)
VECTOR = np.random.default_rng(0).normal(size=384).astype(np.float32)
FULL = Outcome(
    tenant_id="acme",
    request_id="r1",
    decide_time=NOW,
    user_id="ann",
    project_id="shop",
    tags={"kind": "faq"},
    strategy=Strategy.TRAINED,
    model="cheap",
    tier=Tier.SIMPLE,
    exploration=Exploration.EXPLORE,
    propensity=0.007,
    preferred_model="strong",
    shadow=Shadow("strong", Strategy.CASCADE),
    features={"length": 0.25, "maths": 1.0},
    language="ko",
    embedding=Embedding(VECTOR / np.linalg.norm(VECTOR), "e5@2"),
    candidates=(
        RecordedCandidate("cheap", Tier.SIMPLE, 0.7, 120, 90, 0.65),
        RecordedCandidate("strong", Tier.COMPLEX, 0.9, -1, 120, 0.0, "only by name"),
    ),
    demand=Demand(Needs(tools=True, korean=True), 321, 100, 0.9, Tier.SIMPLE, Tier.MEDIUM, model=""),
    quality_target=0.9,
    complexity=0.4,
    out_of_distribution=True,
    heads_version="h1",
    catalog_version="c1",
    rule="faq",
)
DONE = Completion("strong", 300, 80, 1, ("cheap",), "small", 5000, 1.5, {"reasoning_output_token_count": 20})
GOOD = Feedback(0.75, ScoreSource.CALLER)


class Clock:
    """Unix seconds that the test tells."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time


Open = Callable[..., Awaitable[OutcomeLog]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def opened(tmp_path: Path, clock: Clock) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def make(limits: LogLimits = LIMITS) -> OutcomeLog:
            made = OutcomeLog(tmp_path / "data" / "outcomes.sqlite", limits, clock)
            stack.push_async_callback(made.close)
            await made.open()
            return made

        yield make


async def all_of(log: OutcomeLog, tenant_id: str = "acme", **more: bool) -> list[Outcome]:
    return [outcome for _, outcome in await log.page(tenant_id, after=0, limit=10_000, **more)]


@pytest.mark.parametrize("order", list(permutations("dcf")))
async def test_the_parts_of_a_request_meet_in_any_order(opened: Open, order: tuple[str, ...]) -> None:
    log = await opened()
    for part in order:
        if part == "d":
            log.decided(FULL)
        elif part == "c":
            log.completed("acme", "r1", "", DONE)
        else:
            log.judged("acme", "r1", "", GOOD)
    (kept,) = await all_of(log, with_embeddings=True)
    assert kept.embedding is not None
    assert FULL.embedding is not None
    assert np.abs(kept.embedding.vector - FULL.embedding.vector).max() < 2e-4
    assert replace(kept, embedding=None) == replace(FULL, embedding=None, completion=DONE, feedback=GOOD)
    (without,) = await all_of(log)
    assert without.embedding is None


async def test_feedback_on_another_replicas_decision_is_kept_by_itself(opened: Open, clock: Clock) -> None:
    log = await opened()
    log.judged("acme", "elsewhere", "ann", GOOD)
    (kept,) = await all_of(log)
    assert (kept.request_id, kept.model, kept.feedback, kept.decide_time) == ("elsewhere", "", GOOD, clock())
    assert await log.delete_user("acme", "ann") == 1


async def test_the_last_word_stands_but_a_judge_never_overrules_a_caller(opened: Open) -> None:
    log = await opened()
    words = [(0.1, ScoreSource.JUDGE), (0.2, ScoreSource.JUDGE), (0.3, ScoreSource.CALLER), (0.4, ScoreSource.JUDGE)]
    heard = []
    for score, source in words:
        log.judged("acme", "r1", "", Feedback(score, source))
        (kept,) = await all_of(log)
        assert kept.feedback is not None
        heard.append((kept.feedback.score, kept.feedback.source.value))
    assert heard == [(0.1, "judge"), (0.2, "judge"), (0.3, "caller"), (0.3, "caller")]


async def test_tenants_and_users_are_apart(opened: Open) -> None:
    log = await opened()
    log.decided(FULL)
    log.decided(replace(FULL, tenant_id="another"))
    log.decided(replace(FULL, request_id="r2", user_id="bob"))
    assert await log.delete_user("third", "ann") == 0
    assert await log.delete_user("acme", "ann") == 1
    assert [kept.request_id for kept in await all_of(log)] == ["r2"]
    assert len(await all_of(log, "another")) == 1


async def test_a_forgotten_user_is_gone_from_the_file(opened: Open, tmp_path: Path) -> None:
    log = await opened()
    log.decided(replace(FULL, user_id="user-to-forget"))
    await log.flush()
    await log.delete_user("acme", "user-to-forget")
    await log.close()
    assert all(b"user-to-forget" not in path.read_bytes() for path in (tmp_path / "data").iterdir())


async def test_pages_neither_skip_nor_repeat_while_rows_come_and_go(opened: Open) -> None:
    log = await opened()
    for number in range(10):
        log.decided(replace(FULL, request_id=f"r{number}", decide_time=NOW - number))
    seen: list[str] = []
    after = 0
    while page := await log.page("acme", after=after, limit=3):
        after = page[-1][0]
        seen += [outcome.request_id for _, outcome in page]
        log.decided(replace(FULL, request_id="r0"))  # One that was listed is decided again.
        if len(seen) == 3:
            log.decided(replace(FULL, request_id="late", decide_time=NOW - 100))
            log.decided(replace(FULL, request_id="r2", user_id="bob"))
    assert seen == [f"r{number}" for number in range(10)] + ["late"]


async def test_start_time_and_age_bound_what_is_seen(opened: Open, clock: Clock) -> None:
    log = await opened()
    log.decided(FULL)
    clock.time += 1000
    log.decided(replace(FULL, request_id="r2", decide_time=clock()))
    assert [kept.request_id for _, kept in await log.page("acme", after=0, limit=9, start_time=NOW + 1)] == ["r2"]
    assert [kept.request_id for kept in await log.newest("acme", 1)] == ["r2"]
    clock.time = NOW + 3601
    assert [kept.request_id for kept in await all_of(log)] == ["r2"]
    log.decided(replace(FULL, request_id="r3", decide_time=clock()))
    assert await log.count() == 2, "what is too old is deleted"


async def test_the_log_is_bounded(opened: Open) -> None:
    log = await opened(replace(LIMITS, entries=50, queue_entries=1000))
    for number in range(500):
        log.decided(replace(FULL, request_id=f"r{number}"))
        if number % 7 == 0:
            await log.flush()
    await log.flush()
    count = await log.count()
    assert 50 <= count <= 53
    assert [kept.request_id for kept in await all_of(log)][-1] == "r499"


async def test_the_queue_is_bounded_and_its_losses_are_counted(opened: Open) -> None:
    log = await opened(replace(LIMITS, queue_entries=10))
    for number in range(25):
        log.decided(replace(FULL, request_id=f"r{number}"))
    assert log.dropped_count == 15
    assert await log.count() == 10


async def test_a_log_of_no_entries_keeps_nothing(opened: Open) -> None:
    log = await opened(replace(LIMITS, entries=0))
    log.decided(FULL)
    assert (await log.count(), log.dropped_count) == (0, 0)


async def test_embeddings_can_be_left_out(opened: Open) -> None:
    log = await opened(replace(LIMITS, keep_embeddings=False))
    log.decided(FULL)
    (kept,) = await all_of(log, with_embeddings=True)
    assert kept.embedding is None


async def test_what_cannot_be_written_stays_queued(opened: Open, tmp_path: Path) -> None:
    log = await opened()
    log.decided(FULL)
    await log.flush()
    other = sqlite3.connect(tmp_path / "data" / "outcomes.sqlite")
    other.execute("ALTER TABLE outcomes RENAME TO hidden")
    other.commit()
    log.decided(replace(FULL, request_id="r2"))
    with pytest.raises(sqlite3.Error):
        await log.flush()
    other.execute("ALTER TABLE hidden RENAME TO outcomes")
    other.commit()
    other.close()
    assert [kept.request_id for kept in await all_of(log)] == ["r1", "r2"]


async def test_it_is_written_without_being_asked(opened: Open, tmp_path: Path) -> None:
    log = await opened()
    writer = asyncio.create_task(log.write_for_ever(0.0))
    log.decided(FULL)
    reader = sqlite3.connect(tmp_path / "data" / "outcomes.sqlite")
    async with asyncio.timeout(10):
        while not reader.execute("SELECT count(*) FROM outcomes").fetchone()[0]:  # noqa: ASYNC110  (no event tells)
            await asyncio.sleep(0.01)
    reader.close()
    writer.cancel()


async def test_a_broken_file_is_set_aside(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "outcomes.sqlite").write_bytes(b"no database at all " * 200)
    log = await opened()
    log.decided(FULL)
    assert await log.count() == 1
    assert [path.name for path in (tmp_path / "data").glob("*.broken-*")] == [f"outcomes.sqlite.broken-{int(NOW)}"]


VICTIM = """
import asyncio, sys, time
from pathlib import Path
from services.router.outcomes import Outcome
from services.router.sqlite import LogLimits, OutcomeLog

async def main():
    log = OutcomeLog(Path(sys.argv[1]), LogLimits(10**6, 3600.0, 10**6), time.time)
    await log.open()
    number = 0
    while True:
        for _ in range(20):
            log.decided(Outcome("acme", f"r{number}", time.time(), model="cheap", features={"length": 1.0}))
            number += 1
        await log.flush()
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.sqlite"
    victim = subprocess.Popen(  # noqa: ASYNC220  (the test has nothing else to do)
        [sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert victim.stdout is not None
    promised = 0
    try:
        for line in victim.stdout:
            promised = int(line)
            if promised >= 400:
                break
    finally:
        # In the middle of whatever it writes now.
        os.kill(victim.pid, signal.SIGKILL)
        victim.stdout.close()
        assert victim.wait(10) == -signal.SIGKILL
    log = OutcomeLog(path, replace(LIMITS, entries=10**6), time.time)
    await log.open()
    kept = {outcome.request_id for outcome in await all_of(log)}
    assert kept >= {f"r{number}" for number in range(promised)}
    assert len(kept) % 20 == 0, "a batch is there whole or not at all"
    log.decided(replace(FULL, decide_time=time.time()))
    assert await log.count() == len(kept) + (FULL.request_id not in kept)
    await log.close()
