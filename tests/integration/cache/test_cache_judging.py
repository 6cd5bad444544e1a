"""The judge of near misses over real sockets: aliases, bounds, failures, and that nothing deleted comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import unavailable
from mesh.testing import TEST_IDENTITY
from services.cache.judging import ATTEMPTS_FROM
from services.cache.messages import question_from_proto
from services.cache.namespaces import NamespacePolicy
from services.cache.store import Found
from tests.integration.cache.cache_rig import Rig
from tests.integration.cache.test_cache_service import answer, ask

RESET = "How do I reset the alarm?"


class Judged(Rig):
    """With an entry that the judge is asked about."""

    source = ""


async def considered(rig: Judged, text: str = "Reset alarm please", probability: float = 0.8, **fields: Any) -> bool:
    """What a lookup of this text that missed would hand to the judge: the nearest entry, whatever it is."""
    asked = rig.answers.ask(question_from_proto(ask(text, **fields), "acme"), "request-1")
    entry = await rig.store.get(rig.source)
    assert entry is not None
    return rig.judging.consider(asked, Found(entry, 0.9), probability, 0.95)


@pytest.fixture
async def judged(tmp_path: Path) -> AsyncIterator[Judged]:
    async with AsyncExitStack() as stack:
        rig = Judged(tmp_path, stack)
        await rig.start()
        rig.policies["default"] = NamespacePolicy(judge_model="small-judge", sharing_user_count=1)
        rig.source = await rig.put(RESET, tags={"team": "a"}, user_id="u1")
        task = asyncio.create_task(rig.judging.run())
        yield rig
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_yes_gives_the_new_question_its_own_entry(judged: Judged) -> None:
    assert await considered(judged, user_id="u2")
    await judged.judging.idle()
    assert judged.judgements() == {"yes": 1}
    looked = await judged.look("Reset alarm please")
    assert looked.hit.kind == cache_pb2.HIT_KIND_EXACT
    assert looked.hit.completion == answer()
    assert looked.hit.entry_id != judged.source
    neighbour = await judged.look("How can I reset alarm please")
    assert neighbour.hit.kind == cache_pb2.HIT_KIND_SEMANTIC
    (request,) = judged.inference.seen
    assert (request.request_id, request.model) == ("request-1", "small-judge")
    assert request.attempt == ATTEMPTS_FROM + 50_000_000
    assert request.purpose == inference_pb2.PURPOSE_CLASSIFIER
    assert request.sampling.max_output_tokens == 4
    assert "Reset alarm please" in request.messages[1].parts[0].text
    assert "Press the button." in request.messages[1].parts[0].text


@pytest.mark.parametrize("said", ["no", "아니요", "Yes, because the question says so", "", "yes\n\nno"])
async def test_anything_but_yes_is_nothing(judged: Judged, said: str) -> None:
    judged.inference.says = said
    assert await considered(judged)
    await judged.judging.idle()
    assert judged.judgements() == {"no": 1}
    assert (await judged.look("Reset alarm please")).WhichOneof("outcome") == "lease"
    assert not await considered(judged), "asked once"


async def test_a_judge_that_fails_is_a_count_and_the_next_one_is_asked(judged: Judged) -> None:
    judged.inference.says = unavailable("down")
    assert await considered(judged)
    await judged.judging.idle()
    judged.inference.says = "예"
    assert await considered(judged, "알람 초기화 방법")
    await judged.judging.idle()
    assert judged.judgements() == {"failed": 1, "yes": 1}
    assert "아니요" in judged.inference.seen[1].messages[0].parts[0].text


async def test_rate_and_queue_are_bounded_and_nothing_waits(judged: Judged) -> None:
    judged.inference.go.clear()
    assert await considered(judged, "Reset alarm a")
    await judged.inference.asked.wait()
    assert [await considered(judged, f"Reset alarm {letter}") for letter in "bcde"] == [True] * 3 + [False]
    assert judged.judgements() == {"queue_full": 1}
    judged.inference.go.set()
    await judged.judging.idle()
    for number in range(10):
        await considered(judged, f"Reset alarm {number}")
        await judged.judging.idle()
    # Ten at once: five are used up by the ones above.
    assert judged.judgements() == {"queue_full": 1, "yes": 9, "rate_limited": 5}
    judged.now += 1.0
    assert await considered(judged, "Reset alarm again")
    assert not await considered(judged, "Reset alarm once more")
    await judged.judging.idle()


@pytest.mark.parametrize(
    ("probability", "fields"),
    [
        (0.49, {}),
        (0.95, {}),
        (0.8, {"namespace": "without-judge"}),
        (0.8, {"policy": chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_READ)}),
        (0.8, {"text": "x" * 2001}),
    ],
)
async def test_what_is_not_judged(judged: Judged, probability: float, fields: dict[str, Any]) -> None:
    text = fields.pop("text", "Reset alarm please")
    assert not await considered(judged, text, probability, **fields)
    assert judged.inference.seen == []


async def test_another_tenants_and_an_unshared_answer_are_not_judged(judged: Judged) -> None:
    asked = judged.answers.ask(question_from_proto(ask("Reset alarm please"), "acme"))
    entry = await judged.store.get(judged.source)
    assert entry is not None
    for other in (replace(entry, tenant="evil"), replace(entry, owner="u1"), replace(entry, namespace="shop")):
        assert not judged.judging.consider(asked, Found(other, 0.9), 0.8, 0.95)
    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    assert not judged.judging.consider(asked, Found(entry, 0.9), 0.8, 0.95)


async def test_what_is_deleted_while_the_judge_thinks_does_not_come_back(judged: Judged) -> None:
    judged.inference.go.clear()
    assert await considered(judged)
    await judged.inference.asked.wait()
    deleted = await judged.stub.InvalidateEntries(cache_pb2.InvalidateEntriesRequest(all=True))
    assert deleted.entry_count == 1
    judged.inference.go.set()
    await judged.judging.idle()
    assert judged.judgements() == {"yes_not_stored": 1}
    assert await judged.store.count(()) == 0


async def test_an_answer_of_its_own_is_not_replaced(judged: Judged) -> None:
    judged.inference.go.clear()
    assert await considered(judged)
    own = await judged.put("Reset alarm please")
    judged.inference.go.set()
    await judged.judging.idle()
    assert judged.judgements() == {"yes_not_stored": 1}
    assert (await judged.look("Reset alarm please")).hit.entry_id == own


@pytest.mark.parametrize("how", ["report", "user", "other_user", "ids", "tag"])
async def test_an_alias_goes_with_its_source(judged: Judged, how: str) -> None:
    assert await considered(judged, user_id="u2")
    await judged.judging.idle()
    assert await judged.store.count(()) == 2
    source = judged.source
    left = 0
    if how == "report":
        assert (await judged.report(source, report_id="exact:r")).retired
    elif how == "user":
        request = cache_pb2.DeleteUserEntriesRequest(user_id="u1")
        assert (await judged.stub.DeleteUserEntries(request)).entry_count == 2
    elif how == "other_user":
        request = cache_pb2.DeleteUserEntriesRequest(user_id="u2")
        assert (await judged.stub.DeleteUserEntries(request)).entry_count == 1
        left = 1
    else:
        chosen = {"entry_ids": [source]} if how == "ids" else {"tags": {"team": "a"}}
        for dry_run in (True, False):
            deletion = cache_pb2.InvalidateEntriesRequest(**chosen, dry_run=dry_run)
            assert (await judged.stub.InvalidateEntries(deletion)).entry_count == 2
    assert await judged.store.count(()) == left
    assert (await judged.look("Reset alarm please")).WhichOneof("outcome") == "lease"


async def test_a_wrong_exact_hit_of_an_alias_is_the_caches_error(judged: Judged) -> None:
    assert await considered(judged)
    await judged.judging.idle()
    alias = (await judged.look("Reset alarm please")).hit.entry_id
    assert (await judged.report(alias, report_id="exact:r")).retired
    assert judged.evidence.standing("acme", "default").wrong == 1
    assert (await judged.look(RESET)).WhichOneof("outcome") == "hit", "the source is not at fault"
