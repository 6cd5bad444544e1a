"""Reports over a real socket: evidence on disk, suspension and its end, kill -9, a full disk."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY, dial, metric_points
from services.cache.feedback import Evidence, Report, Served
from services.cache.feedback_journal import FeedbackJournal
from services.cache.namespaces import NamespacePolicy
from services.cache.store import entry_id
from services.cache.verifier import to_json
from tests.cache_verifier import VERIFIER
from tests.integration.cache.cache_rig import Rig
from tests.integration.cache.test_cache_process import MODEL, process
from tests.integration.cache.test_cache_service import Lookup, Store, answer, ask

RESET = "How do I reset the alarm?"
REWORDED = "How can I reset the alarm?"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        made = Rig(tmp_path, stack)
        await made.start()
        yield made


async def test_a_namespace_that_breaks_its_bound_serves_exact_hits_only_until_restored(rig: Rig) -> None:
    entries = [await rig.put(f"Explain {word} number one", namespace="shop") for word in ("apple", "berry", "cherry")]
    for word in ("apple", "berry", "cherry"):
        looked = await rig.look(f"Can I explain {word} number one", namespace="shop")
        assert looked.hit.kind == cache_pb2.HIT_KIND_SEMANTIC
    kept = await rig.put(RESET, namespace="shop")
    for number, entry in enumerate(entries):
        reply = await rig.report(entry, report_id=f"semantic@shop:r{number}")
        assert reply.retired
        assert reply.namespace_suspended == (number == 2)
    exact = await rig.look(RESET, namespace="shop")
    assert (exact.hit.kind, exact.hit.entry_id) == (cache_pb2.HIT_KIND_EXACT, kept)
    missed = await rig.look(REWORDED, namespace="shop")
    assert missed.WhichOneof("outcome") == "lease"
    inspected = await rig.stub.InspectLookup(
        cache_pb2.InspectLookupRequest(request=ask("Can I reset the alarm?", namespace="shop"))
    )
    assert inspected.outcome == "miss"
    assert "serves exact hits only: 3 of 7 lookups by meaning were reported wrong" in inspected.reason
    assert not any(candidate.would_serve for candidate in inspected.candidates)
    assert metric_points(rig.metrics, "tenth.cache.suspensions")[frozenset()].value == 1

    await rig.put(RESET)
    elsewhere = await rig.look(REWORDED)
    assert elsewhere.hit.kind == cache_pb2.HIT_KIND_SEMANTIC, "other namespaces are not touched"

    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    assert not (await rig.restore("shop")).suspended
    set_identity(TEST_IDENTITY)
    assert rig.evidence.is_suspended("acme", "shop"), "another tenant restores nothing of this one's"

    restored = await rig.restore("shop")
    assert (restored.namespace, restored.suspended, restored.lookup_count, restored.wrong_count) == (
        "shop",
        False,
        0,
        0,
    )
    assert (await rig.restore("shop")) == restored, "idempotent"
    again = await rig.look("Can I reset the alarm?", namespace="shop")
    assert again.hit.kind == cache_pb2.HIT_KIND_SEMANTIC


async def test_the_bound_is_the_namespaces_own(rig: Rig) -> None:
    rig.policies["loose"] = NamespacePolicy(max_wrong_hits_per_thousand=1000.0, sharing_user_count=1)
    for number in range(5):
        reply = await rig.report(entry_id(f"k{number}"), report_id=f"semantic@loose:r{number}")
        assert not reply.namespace_suspended
    for number in range(3):
        reply = await rig.report(entry_id(f"k{number}"), report_id=f"semantic@tight:r{number + 10}")
    assert reply.namespace_suspended


async def test_what_was_wrong_for_its_own_question_is_not_the_caches_error(rig: Rig) -> None:
    for number in range(4):
        entry = await rig.put(f"Explain apple{number}")
        said = {"report_id": f"exact:r{number}"} if number % 2 else {"question": f" Explain apple{number}\n"}
        reply = await rig.report(entry, **said)
        assert (reply.retired, reply.namespace_suspended) == (True, False)
    assert rig.evidence.standing("acme", "default").wrong == 0


async def test_a_report_counts_once_and_a_changed_mind_still_retires(rig: Rig) -> None:
    entry = await rig.put(RESET)
    for _ in range(3):
        assert not (await rig.report(entry, correct=True, report_id="semantic:r")).retired
    stored = await rig.store.get(entry)
    assert stored is not None
    assert (stored.right_count, stored.wrong_count) == (1, 0)
    assert rig.evidence.standing("acme", "default").right == 1
    assert (await rig.report(entry, report_id="semantic:r")).retired
    assert (await rig.look(RESET)).WhichOneof("outcome") == "lease"
    assert rig.evidence.standing("acme", "default").wrong == 0
    # The report of an answer that is gone says the same again, and leaves the next answer alone.
    assert (await rig.report(await rig.put("Paint a fence"), report_id="semantic:s")).retired
    await rig.put("Paint a fence")
    assert (await rig.report(entry_id("x"), report_id="semantic:s")).retired
    assert rig.evidence.standing("acme", "default").wrong == 1


async def test_two_who_got_the_same_wrong_answer_are_two_reports(rig: Rig) -> None:
    entry = await rig.put(RESET, namespace="shop")
    assert (await rig.report(entry, report_id="semantic:r1")).retired
    assert not (await rig.report(entry, report_id="semantic:r2")).retired, "gone already"
    assert rig.evidence.standing("acme", "shop").wrong == 2


async def test_evidence_comes_back_after_a_restart_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    evidence = Evidence()
    journal = FeedbackJournal(tmp_path, evidence)
    await journal.open()
    for _ in range(50):
        evidence.looked("acme", "shop", hit=True)
    for number in range(4):
        taken = Report("acme", "shop", f"e{number}", Served.SEMANTIC, False, f"r{number}", question="d")
        await journal.append(evidence.report(taken, 5.0))
    state = list(evidence.snapshot())
    assert evidence.is_suspended("acme", "shop")
    await journal.close()
    path = tmp_path / "cache_feedback.jsonl"
    assert "suspended" in path.read_text()
    with path.open("ab") as file:
        file.write(b'not json\n{"kind":"seen","tenant":"ac')
    again = Evidence()
    journal = FeedbackJournal(tmp_path, again)
    await journal.open()
    assert list(again.snapshot()) == state
    assert [json.loads(line) for line in path.read_text().splitlines()] == state, "rewritten without the torn line"
    await journal.append(again.restore("acme", "shop"))
    await journal.close()
    third = Evidence()
    journal = FeedbackJournal(tmp_path, third)
    await journal.open()
    assert not third.is_suspended("acme", "shop")
    assert third.seen("acme", "r3") is not None, "reports from before count once all the same"
    await journal.close()


async def test_two_replicas_with_one_directory_keep_a_file_each(tmp_path: Path) -> None:
    journals = []
    for number in range(2):
        evidence = Evidence()
        journal = FeedbackJournal(tmp_path, evidence)
        await journal.open()
        taken = Report("acme", "shop", "e", Served.SEMANTIC, False, f"of replica {number}")
        await journal.append(evidence.report(taken, 5.0))
        journals.append(journal)
    for journal in journals:
        await journal.close()
    texts = [(tmp_path / name).read_text() for name in ("cache_feedback.jsonl", "cache_feedback1.jsonl")]
    for number, text in enumerate(texts):
        assert f"of replica {number}" in text
        assert f"of replica {1 - number}" not in text


async def test_the_file_is_rewritten_when_it_has_grown(tmp_path: Path) -> None:
    evidence = Evidence(max_reports=2, max_entries=2)
    journal = FeedbackJournal(tmp_path, evidence, growth_bytes=2000)
    await journal.open()
    path = tmp_path / "cache_feedback.jsonl"
    for number in range(100):
        taken = Report("acme", "shop", f"e{number}", Served.SEMANTIC, True, f"r{number}")
        await journal.append(evidence.report(taken, 5.0))
        assert path.stat().st_size < 3500
    await journal.close()
    again = Evidence(max_reports=2, max_entries=2)
    journal = FeedbackJournal(tmp_path, again)
    await journal.open()
    assert again.standing("acme", "shop").right == 100
    await journal.close()


async def test_reports_at_once_are_all_on_disk(tmp_path: Path) -> None:
    evidence = Evidence()
    journal = FeedbackJournal(tmp_path, evidence, growth_bytes=1500)
    await journal.open()

    async def one(number: int) -> None:
        taken = Report("acme", "shop", f"e{number}", Served.SEMANTIC, number % 2 == 0, f"r{number}")
        await journal.append(evidence.report(taken, 1000.0))
        # What is acknowledged is there at this moment, whoever's write carried it.
        assert f'"r{number}"' in (tmp_path / "cache_feedback.jsonl").read_text()

    tasks = [asyncio.create_task(one(number)) for number in range(200)]
    tasks[5].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task for task in tasks if not task.cancelled() and task.exception()] == []
    state = list(evidence.snapshot())
    await journal.close()
    again = Evidence()
    journal = FeedbackJournal(tmp_path, again)
    await journal.open()
    assert list(again.snapshot()) == state
    await journal.close()


async def test_a_full_disk_is_typed_and_the_wrong_answer_is_gone_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await rig.put(RESET)
    real, full = os.write, True

    def write(file: int, data: Any) -> int:
        if not full:
            return real(file, data)
        if len(data) > 1:
            return real(file, data[: len(data) // 2])  # Half of it still fits: a torn line in the file.
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("services.cache.feedback_journal.os.write", write)
    with pytest.raises(TenthError) as caught:
        await rig.report(entry, report_id="semantic:r")
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "FEEDBACK_UNAVAILABLE")
    assert (await rig.look(RESET)).WhichOneof("outcome") == "lease", "no answer is served that was reported wrong"
    with pytest.raises(TenthError):
        await rig.report(entry, report_id="semantic:r")
    full = False
    assert (await rig.report(entry, report_id="semantic:r")).retired, "told again, it is kept"
    state = list(rig.evidence.snapshot())
    assert rig.evidence.standing("acme", "default").wrong == 1
    await rig.journal.close()
    again = Evidence()
    journal = FeedbackJournal(rig.folder, again)
    await journal.open()
    assert list(again.snapshot()) == state
    await journal.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from services.cache.feedback import Evidence, Report, Served
from services.cache.feedback_journal import FeedbackJournal

async def main():
    evidence = Evidence()
    journal = FeedbackJournal(Path(sys.argv[1]), evidence, growth_bytes=4000)
    await journal.open()
    for number in range(10**9):
        await journal.append(evidence.report(Report("acme", "shop", "e", Served.SEMANTIC, True, f"r{number}"), 5.0))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_acknowledged_reports_survive_kill_minus_nine(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    for _ in range(300):
        last = int(await child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest, _ = await child.communicate()
    last = max([last, *(int(line) for line in rest.split(b"\n")[:-1] if line)])
    evidence = Evidence()
    journal = FeedbackJournal(tmp_path, evidence)
    await journal.open()
    assert evidence.seen("acme", f"r{last}") is not None
    assert evidence.standing("acme", "shop").right in (last + 1, last + 2), "each once; one may have been on its way"
    await journal.close()


async def test_a_suspended_namespace_stays_so_over_a_kill_of_the_cache(tmp_path: Path) -> None:
    # A verifier of similarity alone: the shipped one would soon ask more of a namespace with wrong reports.
    verifier = replace(VERIFIER, embedder=f"{MODEL.name}@2-int8")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.json").write_text(json.dumps(to_json(verifier)))
    settings = {"TENTH_CACHE_WEIGHTS_DIR": str(tmp_path / "weights")}
    questions = ("How do I reset my password?", "How can I reset my password?")

    async def store(stub: Any) -> str:
        looked = await stub.LookupCompletion(Lookup(request=ask(questions[0])), timeout=60)
        request = Store(lease_id=looked.lease.lease_id, request=ask(questions[0]), completion=answer())
        return str((await stub.StoreCompletion(request, timeout=60)).entry_id)

    async with process(tmp_path, **settings) as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        for number in range(3):
            entry = await store(stub)
            looked = await stub.LookupCompletion(Lookup(request=ask(questions[1])), timeout=60)
            assert looked.hit.kind == cache_pb2.HIT_KIND_SEMANTIC
            report = cache_pb2.ReportAnswerQualityRequest(entry_id=entry, report_id=f"semantic@default:r{number}")
            suspended = (await stub.ReportAnswerQuality(report, timeout=60)).namespace_suspended
            assert suspended == (number == 2)
        child.send_signal(signal.SIGKILL)
        await child.wait()
    async with process(tmp_path, **settings) as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        await store(stub)
        looked = await stub.LookupCompletion(Lookup(request=ask(questions[1])), timeout=60)
        assert looked.WhichOneof("outcome") == "lease"
        request = cache_pb2.RestoreNamespaceRequest(namespace="default")
        assert not (await stub.RestoreNamespace(request, timeout=60)).namespace.suspended
        child.send_signal(signal.SIGKILL)
        await child.wait()
    async with process(tmp_path, **settings) as (_, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        looked = await stub.LookupCompletion(Lookup(request=ask(questions[1])), timeout=60)
        assert looked.hit.kind == cache_pb2.HIT_KIND_SEMANTIC, "what a person restored stays restored"
