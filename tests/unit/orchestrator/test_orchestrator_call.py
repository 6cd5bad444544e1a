"""Assembly of a stream, the digest and the rate of admission, the snapshot on disk, and the facts of a receipt."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError, unavailable
from mesh.receipt import Price
from services.orchestrator.admission import Admission, RateLimiter, payload_digest
from services.orchestrator.call import Call, Route, check_deadline, is_down
from services.orchestrator.generation import Assembly, _after_prefix, _resumable, whole_delta
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.snapshot import Snapshot

Delta, ToolPiece = chat_pb2.CompletionDelta, chat_pb2.ToolCallDelta
PRICES = {"m": Price("m", 1000, 2000), "cpu": Price("cpu", 0, 0, cpu_hour=36_000_000)}


def made_call(**fields: Any) -> Call:
    defaults: dict[str, Any] = {
        "request": chat_pb2.CompletionRequest(request_id="r", tags={"a": "b"}),
        "digest": b"d",
        "identity": Identity("acme", "app", user_id="u", project_id="p"),
        "tenant": ledger_pb2.TenantPolicy(tenant_id="acme", baseline_model="m", disabled_layers=["cache"]),
        "prices": PRICES,
        "price_book_version": 7,
        "created": 1000.0,
        "trace_id": "t",
        "streaming": True,
        "attempt_base": 5000,
    }
    return Call(**{**defaults, **fields})


# Assembly


@given(st.lists(st.text(max_size=5), max_size=20), st.lists(st.text(max_size=5), max_size=20))
def test_pieces_add_up_to_the_answer_and_back(texts: list[str], thoughts: list[str]) -> None:
    answer = Assembly()
    seen = ""
    for text in texts:
        answer.add(Delta(text=text))
        seen += text
        assert answer.text == seen
    for thought in thoughts:
        answer.add(Delta(reasoning=thought))
    completion = answer.completion("m", inference_pb2.GenerationFinished())
    assert "".join(part.text for part in completion.message.parts) == seen
    again = whole_delta(completion)
    assert (again.text, again.reasoning) == (seen, "".join(thoughts))


KOREAN = "첫째, 비밀번호를 바꾸세요 (“설정” → 보안) 👩‍💻. \u1112\u1161\u11ab글 끝."
ARGUMENTS = '{"질문": "환불은 어떻게 하나요?", "수": 3}'


@given(st.lists(st.integers(0, len(KOREAN)), max_size=12), st.lists(st.integers(0, len(ARGUMENTS)), max_size=8))
def test_korean_cut_anywhere_comes_together_the_same(cuts: list[int], argument_cuts: list[int]) -> None:
    """Also within a decomposed syllable or an emoji of several code points."""

    def pieces(text: str, at: list[int]) -> list[str]:
        edges = [0, *sorted(at), len(text)]
        return [text[begin:end] for begin, end in pairwise(edges)]

    answer = Assembly()
    for text in pieces(KOREAN, cuts):
        answer.add(Delta(reasoning=text))
    for number, text in enumerate(pieces(KOREAN, cuts)):
        answer.add(Delta.FromString(Delta(text=text).SerializeToString()))
        if number == 0:
            answer.add(Delta(tool_calls=[ToolPiece(index=0, id="c", name="find")]))
    for text in pieces(ARGUMENTS, argument_cuts):
        answer.add(Delta(tool_calls=[ToolPiece(index=0, arguments_json=text)]))
    usage = usage_pb2.Usage(output_token_count=5, reasoning_output_token_count=2)
    finished = inference_pb2.GenerationFinished(finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS, usage=usage)
    completion = answer.completion("m", finished)
    assert completion.message.parts[0].text == completion.message.reasoning == KOREAN
    assert completion.message.tool_calls[0].arguments_json == ARGUMENTS
    replayed = Assembly()
    replayed.add(whole_delta(chat_pb2.Completion.FromString(completion.SerializeToString())))
    assert replayed.completion("m", finished) == completion


def test_tool_calls_come_together_by_index() -> None:
    answer = Assembly()
    for index, id_, name, arguments in ((1, "b", "late", "{}"), (0, "a", "find", '{"q"'), (0, "", "", ":1}")):
        answer.add(Delta(tool_calls=[ToolPiece(index=index, id=id_, name=name, arguments_json=arguments)]))
    logprob = chat_pb2.TokenLogprob(token="x", logprob=-1)
    answer.add(Delta(logprobs=[logprob]))
    completion = answer.completion("m", inference_pb2.GenerationFinished())
    assert [(call.id, call.name, call.arguments_json) for call in completion.message.tool_calls] == [
        ("a", "find", '{"q":1}'),
        ("b", "late", "{}"),
    ]
    assert list(completion.logprobs) == [logprob]
    assert not completion.message.parts
    assert whole_delta(completion).tool_calls[1].id == "b"


@given(st.text(max_size=12), st.lists(st.text(max_size=4), max_size=8), st.integers(0, 12))
def test_a_repeated_answer_continues_exactly_after_what_was_sent(first: str, rest: list[str], cut: int) -> None:
    whole = first + "".join(rest)
    sent = whole[:cut]
    text, out, skipping = "", sent, True
    for piece in (first, *rest):
        text += piece
        fresh = _after_prefix(text, sent, Delta(text=piece)) if skipping else Delta(text=piece)
        if fresh is not None:
            skipping = False
            out += fresh.text
    assert out == whole


@pytest.mark.parametrize(("text", "sent"), [("Good", "Hello"), ("Hex", "Hello"), ("Hellx there", "Hello")])
def test_a_different_answer_is_broken(text: str, sent: str) -> None:
    with pytest.raises(TenthError) as raised:
        _after_prefix(text, sent, Delta(text=text))
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "STREAM_BROKEN")


@pytest.mark.parametrize(
    ("sent", "delta", "temperature", "self_hosted", "expected"),
    [
        ("", Delta(), 1.0, False, True),
        ("Hel", Delta(text="Hel"), 0.0, True, True),
        ("Hel", Delta(text="Hel"), 0.0, False, False),
        ("Hel", Delta(text="Hel"), 0.1, True, False),
        ("Hel", Delta(text="Hel"), None, True, False),
        ("", Delta(reasoning="hm"), 0.0, True, False),
        ("Hel", Delta(text="Hel", logprobs=[chat_pb2.TokenLogprob()]), 0.0, True, False),
        ("", Delta(tool_calls=[ToolPiece(id="c")]), 0.0, True, False),
    ],
)
def test_what_may_be_tried_again(
    sent: str, delta: chat_pb2.CompletionDelta, temperature: float | None, self_hosted: bool, expected: bool
) -> None:
    call = made_call()
    if temperature is not None:
        call.request.sampling.temperature = temperature
    call.note_sent(sent, delta)
    route = Route("m", chat_pb2.TIER_SIMPLE, self_hosted=self_hosted)
    assert _resumable(call, route) == expected
    assert call.began == (delta != Delta())


# Admission

REQUESTS = st.builds(
    lambda text, user, tags, temperature: chat_pb2.CompletionRequest(
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])],
        user_id=user,
        tags=tags,
        sampling=chat_pb2.SamplingParameters(temperature=temperature),
    ),
    st.text(max_size=5),
    st.text(max_size=2),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=3),
    st.sampled_from((0.0, 0.5, 1.0)),
)


@given(REQUESTS, REQUESTS)
def test_the_digest_ignores_the_id_and_nothing_else(
    one: chat_pb2.CompletionRequest, other: chat_pb2.CompletionRequest
) -> None:
    assert (payload_digest(one) == payload_digest(other)) == (one == other)
    before = payload_digest(one)
    one.request_id = str(uuid4())
    assert payload_digest(one) == before
    assert one.request_id


def test_map_order_does_not_change_the_digest() -> None:
    tags = {f"k{number}": "v" for number in range(16)}
    one = chat_pb2.CompletionRequest(tags=tags)
    other = chat_pb2.CompletionRequest(tags=dict(reversed(tags.items())))
    assert payload_digest(one) == payload_digest(other)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_rate_is_refilled_continuously() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for _ in range(60):
        limiter.admit("acme", 60)
    with pytest.raises(TenthError) as raised:
        limiter.admit("acme", 60)
    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert raised.value.retry_after_seconds == pytest.approx(1.0)
    limiter.admit("other", 60)
    clock.seconds += 1.0
    limiter.admit("acme", 60)
    with pytest.raises(TenthError):
        limiter.admit("acme", 60)
    clock.seconds += 3600
    for _ in range(60):
        limiter.admit("acme", 60)
    with pytest.raises(TenthError):
        limiter.admit("acme", 60)


@given(st.integers(1, 600), st.lists(st.floats(0, 5), max_size=200))
def test_no_more_than_the_rate_and_one_burst(per_minute: int, pauses: list[float]) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    admitted = 0
    for pause in pauses:
        clock.seconds += pause
        try:
            limiter.admit("acme", per_minute)
        except TenthError as error:
            wait = error.retry_after_seconds
            assert wait is not None
            assert wait > 0
        else:
            admitted += 1
    assert admitted <= per_minute + sum(pauses) * per_minute / 60 + 1e-6


def test_no_limit() -> None:
    limiter = RateLimiter(Clock())
    for _ in range(1000):
        limiter.admit("acme", 0)


def snapshot_of(tmp_path: Path, **fields: Any) -> Snapshot:
    none = cast(Any, None)
    return Snapshot(fields.get("ledger", none), fields.get("router", none), tmp_path, Clock())


def write_snapshot(tmp_path: Path) -> None:
    reply = ledger_pb2.GetAdmissionSnapshotResponse(version="1", price_book_version=7)
    reply.prices.add(model="m", input_nano_usd_per_million_tokens=1, confirmed=True)
    reply.prices.add(model="later", confirmed=True).valid_from_time.FromSeconds(2000)
    reply.tenants.add(tenant_id="acme", baseline_model="m")
    reply.tenants.add(tenant_id="odd", baseline_model="unpriced")
    (tmp_path / "admission.bin").write_bytes(reply.SerializeToString())


def test_admission_fills_in_what_the_caller_left_out(tmp_path: Path) -> None:
    write_snapshot(tmp_path)
    settings = OrchestratorSettings(default_max_output_tokens=77)
    admission = Admission(snapshot_of(tmp_path), settings, Clock(), Random(1))
    set_identity(Identity("acme", "app", may_assert_user=True))
    request = chat_pb2.CompletionRequest(
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="x")])], user_id="u"
    )
    digest = admission.identify(request)
    assert UUID(request.request_id).version == 4
    call = admission.admit(request, digest, streaming=False)
    assert request.sampling.max_output_tokens == 77
    assert (call.identity.user_id, call.price_book_version, call.digest) == ("u", 7, digest)
    assert 0 < call.attempt_base < 2**31 - 1_000_000
    set_identity(Identity("odd", "app"))
    with pytest.raises(TenthError) as raised:
        admission.admit(chat_pb2.CompletionRequest(), b"", streaming=False)
    assert raised.value.reason == "PRICE_UNKNOWN"
    set_identity(None)


# The snapshot


def test_a_snapshot_outlives_a_restart(tmp_path: Path) -> None:
    empty = snapshot_of(tmp_path)
    with pytest.raises(TenthError) as raised:
        empty.tenant("acme")
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "NOT_READY")
    write_snapshot(tmp_path)
    models = router_pb2.ListModelsResponse(models=[router_pb2.CatalogModel(model="m", self_hosted=True)])
    (tmp_path / "models.bin").write_bytes(models.SerializeToString())
    held = snapshot_of(tmp_path)
    assert held.tenant("acme").baseline_model == "m"
    assert held.price_book_version == 7
    known = held.model("m")
    assert known is not None
    assert known.self_hosted
    assert held.model("x") is None
    with pytest.raises(TenthError) as raised:
        held.tenant("stranger")
    assert (raised.value.code, raised.value.reason) == (Code.PERMISSION_DENIED, "UNKNOWN_TENANT")


def test_prices_begin_at_their_time(tmp_path: Path) -> None:
    write_snapshot(tmp_path)
    held = snapshot_of(tmp_path)
    assert set(held.prices(1999.9)) == {"m"}
    assert set(held.prices(2000.0)) == {"m", "later"}


def test_a_price_begins_in_the_middle_of_a_second(tmp_path: Path) -> None:
    reply = ledger_pb2.GetAdmissionSnapshotResponse(version="1", price_book_version=7)
    reply.prices.add(model="m", confirmed=True).valid_from_time.FromNanoseconds(2_000_500_000_000)
    (tmp_path / "admission.bin").write_bytes(reply.SerializeToString())
    held = snapshot_of(tmp_path)
    assert [set(held.prices(at)) for at in (2000.25, 2000.5, 2000.75)] == [set(), {"m"}, {"m"}]


async def test_following_survives_failures_of_every_kind(tmp_path: Path) -> None:
    failures: list[Any] = [unavailable("down"), OSError("disk full"), None]

    class Ledger:
        asked: list[str] = []  # noqa: RUF012  (one instance)

        async def GetAdmissionSnapshot(self, request: Any, **_: Any) -> Any:
            self.asked.append(request.version)
            failure = failures.pop(0) if failures else None
            if failure is not None:
                raise failure
            if request.version == "1":
                return ledger_pb2.GetAdmissionSnapshotResponse(unchanged=True, version="1")
            reply = ledger_pb2.GetAdmissionSnapshotResponse(version="1", price_book_version=3)
            reply.tenants.add(tenant_id="acme")
            return reply

    class Router:
        async def ListModels(self, request: Any, **_: Any) -> Any:
            return router_pb2.ListModelsResponse(models=[router_pb2.CatalogModel(model="m")])

    ledger = Ledger()
    held = snapshot_of(tmp_path / "new", ledger=ledger, router=Router())
    with pytest.raises(TenthError):
        await held.ping()
    following = asyncio.create_task(held.follow(0.001))
    async with asyncio.timeout(5):
        while "1" not in ledger.asked:  # noqa: ASYNC110  (another task changes it)
            await asyncio.sleep(0.005)
    following.cancel()
    await held.ping()
    assert snapshot_of(tmp_path / "new").price_book_version == 3


# Receipts


def test_facts_of_a_failure() -> None:
    call = made_call()
    call.compute_micros = 1000
    call.reservation_id = "res"
    with call.hop("cache") as hop:
        hop.reason = "miss"
    call.skip("router", receipt_pb2.HOP_OUTCOME_DISABLED, "kill switch")
    assert call.disabled("cache")
    assert not call.disabled("routing")
    facts = call.failed_facts(1002.5, cancelled=False)
    assert (facts.failed, facts.cancelled, facts.attempts_unknown) == (True, False, False)
    assert (facts.tenant_id, facts.user_id, facts.project_id, facts.tags["a"]) == ("acme", "u", "p", "b")
    assert (facts.baseline_model, facts.price_book_version, facts.reservation_id) == ("m", 7, "res")
    assert (facts.create_time.seconds, facts.end_time.ToMilliseconds()) == (1000, 1_002_500)
    assert [hop.name for hop in facts.hops] == ["cache", "router"]
    assert facts.overheads[0].compute_micros == 1000


def test_without_a_cpu_price_compute_is_not_charged() -> None:
    call = made_call(prices={"m": PRICES["m"]})
    call.compute_micros = 1000
    assert not call.facts(0).overheads


@pytest.mark.parametrize(
    ("attempts", "cancelled", "unknown", "expected"),
    [(0, True, False, False), (1, True, False, True), (1, False, True, True), (1, False, False, False)],
)
def test_when_the_ledger_is_to_ask_inferences_records(
    attempts: int, cancelled: bool, unknown: bool, expected: bool
) -> None:
    call = made_call()
    for _ in range(attempts):
        call.next_attempt()
    if unknown:
        call.note_failed_attempt("m", unavailable("gone"))
    assert call.failed_facts(0, cancelled=cancelled).attempts_unknown == expected


def test_what_a_failed_attempt_said_it_spent_is_on_the_receipt() -> None:
    call = made_call()
    assert (call.next_attempt(), call.next_attempt()) == (5001, 5002)
    item = receipt_pb2.OverheadItem(kind="failed_attempt", model="m", usage=usage_pb2.Usage(input_token_count=3))
    error = TenthError(Code.UNAVAILABLE, "X", "x", details=(receipt_pb2.SpentDetail(attempts=[item]),))
    call.note_failed_attempt("m", error)
    assert call.overheads == [item]
    assert not call.attempts_unknown
    again = made_call()
    again.carry(call.failed_facts(0, cancelled=False))
    assert again.overheads == [item]


def test_facts_of_a_hit_bill_no_input() -> None:
    stored = chat_pb2.Completion(model="m", tier=chat_pb2.TIER_MEDIUM)
    stored.usage.input_token_count, stored.usage.output_token_count = 80, 5
    facts = made_call().hit_facts(0, stored, "semantic", 110)
    assert (facts.cache_hit, facts.cache_hit_kind, facts.model) == (True, "semantic", "m")
    assert (facts.usage.input_token_count, facts.usage.output_token_count) == (0, 5)
    assert facts.baseline_input_token_count == 110
    assert facts.attempt == 0


@pytest.mark.parametrize("code", list(Code))
def test_which_errors_mean_down(code: Code) -> None:
    answers = {
        Code.INVALID_ARGUMENT,
        Code.FAILED_PRECONDITION,
        Code.NOT_FOUND,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    }
    assert is_down(TenthError(code, "X", "x")) == (code not in answers)


@pytest.mark.parametrize(
    ("code", "remaining", "expected"),
    [
        (Code.DEADLINE_EXCEEDED, 0.01, True),
        (Code.DEADLINE_EXCEEDED, -1.0, True),
        (Code.DEADLINE_EXCEEDED, 5.0, False),
        (Code.DEADLINE_EXCEEDED, None, False),
        (Code.UNAVAILABLE, 0.0, False),
    ],
)
def test_a_late_hop_or_a_late_request(code: Code, remaining: float | None, expected: bool) -> None:
    error = TenthError(code, "X", "x")
    if not expected:
        check_deadline(error, remaining)
        return
    with pytest.raises(TenthError) as raised:
        check_deadline(error, remaining)
    assert raised.value.code is Code.DEADLINE_EXCEEDED


def test_no_attempt_has_the_number_of_another_or_of_anothers_hedge() -> None:
    call = made_call()
    kinds = (call.next_attempt, call.next_classifier_attempt, call.next_summary_attempt)
    numbers = [number() for number in kinds for _ in range(90)]
    # Inference numbers an attempt that it makes beside a slow one 250 higher.
    assert len({*numbers, *(number + 250 for number in numbers)}) == 2 * len(numbers)
