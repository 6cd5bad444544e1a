"""The judge of near misses: in the background, a model says whether a stored answer answers a question that missed.

Off unless a namespace names a ``judge_model``. Nothing here is waited for by a lookup, and nothing that fails here is
more than a count. What the judge costs is on the books: inference records its call as an attempt of the request that
was looked up, and the ledger puts it on that request's receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from opentelemetry.metrics import Meter
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh import deadlines
from mesh.auth import Identity, identity_or_none, set_identity
from mesh.errors import TenthError
from services.cache.aliases import alias_of, source_of
from services.cache.answers import Asked
from services.cache.embedding import Embedder
from services.cache.judge import MAX_OUTPUT_TOKENS, judgeable, judging_prompt, says_yes
from services.cache.keys import Language, language, semantic_scope
from services.cache.policy import MODE_READ
from services.cache.rates import TokenBuckets
from services.cache.reports import Policies
from services.cache.settings import CacheSettings
from services.cache.store import Entry, Found, VectorStore, entry_id

log = logging.getLogger("tenth.cache.judging")

ATTEMPTS_FROM = 2_000_001_000
"""Above the numbers of every other caller's attempts (the orchestrator's end at 1,999,999,999)."""
_ATTEMPTS = 100_000_000
_REMEMBERED = 4096
_BURST_SECONDS = 10.0
"""As many calls as come in this time may be made at once, per tenant."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How much judging there may be."""

    floor: float = 0.5
    """Least probability, 0..1, that makes a near miss worth a call."""
    per_minute: float = 60.0
    """Calls per minute and tenant."""
    queue_count: int = 100
    """Most near misses that wait; what comes on top is dropped."""
    timeout_seconds: float = 10.0


def judge_settings(settings: CacheSettings) -> JudgeSettings:
    """The judge's part of the service's settings."""
    return JudgeSettings(
        settings.gray_zone_floor, settings.judge_per_minute, settings.judge_queue_count, settings.judge_timeout_seconds
    )


@dataclass(frozen=True, slots=True)
class _Case:
    asked: Asked
    source: Entry
    """As found: without its answer."""
    model: str
    identity: Identity


class Judging:
    """The queue of near misses and the one task that works it off."""

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        store: VectorStore,
        embedder: Embedder,
        policies: Policies,
        settings: JudgeSettings,
        now: Callable[[], float],
        new_id: Callable[[], str],
        random: Callable[[], float],
        meter: Meter,
    ) -> None:
        """``now`` is Unix seconds, ``random`` gives 0..1."""
        self._stub = stub
        self._store = store
        self._embedder = embedder
        self._policies = policies
        self._settings = settings
        self._now = now
        self._new_id = new_id
        self._random = random
        self._queue: asyncio.Queue[_Case] = asyncio.Queue(settings.queue_count)
        self._allowance = TokenBuckets(now, burst_seconds=_BURST_SECONDS)
        self._known: OrderedDict[tuple[str, str, float], None] = OrderedDict()
        self._outcomes = meter.create_counter(
            "tenth.cache.judgements", unit="{judgement}", description="Near misses by what became of them"
        )

    def consider(self, asked: Asked, candidate: Found, probability: float, needed: float) -> bool:
        """A lookup missed, and this was its best candidate: have it judged some time. Never blocks, never raises.

        ``probability`` is the candidate's, ``needed`` what a hit would have needed. Not to be called for dry runs.
        Returns whether it waits to be judged now.
        """
        question, source = asked.question, candidate.entry
        identity = identity_or_none()
        model = self._policies(question.tenant_id, question.namespace).judge_model
        if not model or identity is None or identity.tenant_id != question.tenant_id:
            return False
        if not self._settings.floor <= probability < needed or question.cache_mode == MODE_READ:
            return False
        # An answer that waits for a second user's is that user's alone, under any question.
        if source.owner or source.tenant != question.tenant_id or source.namespace != question.namespace:
            return False
        key = (asked.key, source.entry_id, source.created)
        if key in self._known:
            return False
        # The answer is read when its turn comes; searching brings none along.
        if not judgeable(asked.text, source.question, "-"):
            return False
        if not self._allowance.take(((question.tenant_id,), self._settings.per_minute)):
            return self._count("rate_limited")
        try:
            self._queue.put_nowait(_Case(asked, source, model, identity))
        except asyncio.QueueFull:
            return self._count("queue_full")
        self._known[key] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return True

    async def run(self) -> None:
        """Judge what waits, one after the other, until cancelled."""
        deadlines.set_remaining(None)
        while True:
            case = await self._queue.get()
            try:
                set_identity(case.identity)
                self._count(await self._judge(case))
            except TenthError as error:
                self._count("failed")
                log.info("not judged: %s", error)
            except Exception:
                self._count("failed")
                log.exception("not judged")
            finally:
                set_identity(None)
                self._queue.task_done()

    async def idle(self) -> None:
        """Wait until nothing waits and nothing is being judged."""
        await self._queue.join()

    async def _judge(self, case: _Case) -> str:
        asked = case.asked
        source = await self._store.get(case.source.entry_id)
        if source is None or source.created != case.source.created:
            return "gone"
        answer = _text_of(source.completion)
        if not judgeable(asked.text, source.question, answer):
            return "not_judgeable"
        korean = language(asked.question.last_turn) is Language.KOREAN
        system, user = judging_prompt(asked.text, source.question, answer, korean)
        request = inference_pb2.GenerateTextRequest(
            request_id=asked.request_id or f"judge-{self._new_id()}",
            attempt=ATTEMPTS_FROM + int(self._random() * _ATTEMPTS),
            model=case.model,
            messages=[_message(chat_pb2.ROLE_SYSTEM, system), _message(chat_pb2.ROLE_USER, user)],
            sampling=chat_pb2.SamplingParameters(temperature=0.0, max_output_tokens=MAX_OUTPUT_TOKENS),
            # The contract has no purpose of its own for a judge: the ledger books it as a classifier's overhead.
            purpose=inference_pb2.PURPOSE_CLASSIFIER,
            estimated_input_token_count=len((system + user).encode()) // 3,
            project_id=case.identity.project_id,
        )
        response = await self._stub.GenerateText(request, timeout=self._settings.timeout_seconds)
        said = "".join(part.text for part in response.completion.message.parts)
        if not says_yes(said):
            return "no"
        return "yes" if await self._store_alias(case, source) else "yes_not_stored"

    async def _store_alias(self, case: _Case, source: Entry) -> bool:
        """The new question's own entry. False when there is one already, or the source is not what was judged."""
        asked, now = case.asked, self._now()
        scope = semantic_scope(asked.question, self._embedder.version)
        alias = alias_of(source, asked.question, asked.key, asked.text, scope, now)
        there = await self._store.get(entry_id(asked.key))
        if there is not None and now < there.expires:
            return False
        vector = (await self._embedder.embed([asked.text])).vectors[0]
        if now >= alias.expires or not await self._stands(source):
            return False
        await self._store.put(alias, vector.tolist())
        if await self._stands(source):
            return True
        # Deleted in between: what was deleted must not live on under another question.
        with contextlib.suppress(TenthError):
            await self._store.delete((), [alias.entry_id])
        return False

    async def _stands(self, source: Entry) -> bool:
        """Whether an entry, and the one that it is an alias of, are still what they were."""
        there = await self._store.get(source.entry_id)
        if there is None or there.created != source.created or there.completion != source.completion:
            return False
        first = source_of(source.tags)
        return not first or await self._store.get(first) is not None

    def _count(self, outcome: str) -> bool:
        self._outcomes.add(1, {"tenth.cache.outcome": outcome})
        return False


def _text_of(completion: bytes) -> str:
    """An answer's text; empty for one that calls tools, whose arguments were made for its own question."""
    try:
        message = chat_pb2.Completion.FromString(completion).message
    except DecodeError:
        return ""
    return "" if message.tool_calls else "".join(part.text for part in message.parts)


def _message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])
