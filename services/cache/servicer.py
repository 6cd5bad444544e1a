"""tenth.cache.v1.CacheService: translates between the wire and the cache, and keeps the counts."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import current_identity
from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.telemetry import annotate
from services.cache.aliases import aliases_of_entries, aliases_of_user
from services.cache.answers import AnswerCache, Asked
from services.cache.embedding import Embedder, Vector
from services.cache.errors import Reason
from services.cache.flights import Delta, Finished, FlightBoard, Lease
from services.cache.invalidation import selection
from services.cache.judging import Judging
from services.cache.keys import Question
from services.cache.messages import (
    DEFAULT_NAMESPACE,
    answer_from_proto,
    namespace_to_proto,
    provenance,
    question_from_proto,
    tag_keywords,
)
from services.cache.policy import (
    MODE_WRITE,
    BypassReason,
    CachePolicy,
    NotStoredReason,
    bypass_reason,
    not_stored_reason,
)
from services.cache.rates import TokenBuckets
from services.cache.reports import Reports
from services.cache.store import Condition, Found
from services.cache.transfer import Importer, export

MAX_EMBED_TEXTS = 512
MAX_EMBED_CHARACTERS = 32_768
MAX_CANDIDATES = 100
_REMEMBERED_STORES = 4096
_COUNTED_NAMESPACES = 10_000
_NOT_STORED = "not_stored:"

Board = FlightBoard[chat_pb2.CompletionDelta, chat_pb2.Completion]


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """The RPCs. The tenant is always the identity's."""

    def __init__(
        self,
        answers: AnswerCache,
        board: Board,
        policy: CachePolicy,
        store_name: str,
        reports: Reports,
        judging: Judging | None = None,
        rates: TokenBuckets | None = None,
    ) -> None:
        self._answers = answers
        self._reports = reports
        self._judging = judging
        self._rates = rates or TokenBuckets(time.monotonic)
        self._board = board
        self._policy = policy
        self._store_name = store_name
        self._counts: dict[tuple[str, str], Counter[str]] = {}
        self._stored: OrderedDict[tuple[str, str], cache_pb2.StoreCompletionResponse] = OrderedDict()

    async def LookupCompletion(
        self, request: cache_pb2.LookupCompletionRequest, context: Any
    ) -> cache_pb2.LookupCompletionResponse:
        """Exact, then semantic, then lease or flight."""
        tenant = current_identity().tenant_id
        question = _question(request.request)
        counts = self._counts_of(tenant, question.namespace)
        reason = bypass_reason(question, self._policy)
        if reason is not None:
            annotate({"tenth.cache.outcome": "bypass", "tenth.cache.reason": reason.value})
            if not request.dry_run:
                counts[f"bypass:{reason.value}"] += 1
            return cache_pb2.LookupCompletionResponse(bypass=cache_pb2.Bypass(reason=reason.value))
        asked = self._answers.ask(question, request.request.request_id)
        if question.cache_mode == MODE_WRITE:
            annotate({"tenth.cache.outcome": "lease", "tenth.cache.reason": "cache_mode_write"})
            alone = request.dry_run or request.without_lease
            lease = Lease("", 0.0) if alone else self._board.lead(asked.key, tenant)
            if not request.dry_run:
                counts["miss"] += 1
            return cache_pb2.LookupCompletionResponse(lease=_lease(lease))
        evidence = self._reports.evidence
        suspended = evidence.is_suspended(tenant, question.namespace)
        if suspended:
            annotate({"tenth.cache.suspended": suspended})
        # A request that is already in the air is followed without embedding it again.
        outcome = await self._answers.find(
            asked,
            count_hit=not request.dry_run,
            skip_semantic=lambda: (
                bool(suspended) or (not request.without_lease and bool(self._board.in_flight(asked.key)))
            ),
        )
        if outcome.vector is not None and not request.dry_run:
            evidence.looked(tenant, question.namespace, outcome.found is not None and not outcome.exact)
        response = cache_pb2.LookupCompletionResponse(compute_micros=outcome.compute_micros)
        if outcome.vector is not None:
            response.embedding.CopyFrom(_embedding(outcome.vector, self._answers.embedder))
        reason_found = _suspended_miss(suspended) if suspended and outcome.found is None else outcome.reason
        annotate({"tenth.cache.reason": reason_found, "tenth.cache.compute_micros": outcome.compute_micros})
        if outcome.found is None:
            near = outcome.verdict
            if near is not None and self._judging is not None and not request.dry_run:
                self._judging.consider(asked, near.found, near.probability, near.needed)
            self._miss(asked, request, response, counts)
            return response
        kind = "exact" if outcome.exact else "semantic"
        probability = outcome.verdict.probability if outcome.verdict is not None and not outcome.exact else 1.0
        served = self._answers.hit_count(outcome.found.entry) - (0 if request.dry_run else 1)
        response.hit.CopyFrom(_hit(outcome.found, outcome.exact, probability, served))
        annotate(
            {
                "tenth.cache.outcome": "hit",
                "tenth.cache.kind": kind,
                "tenth.cache.similarity": outcome.found.similarity,
                "tenth.cache.entry_id": outcome.found.entry.entry_id,
            }
        )
        if not request.dry_run:
            counts[kind] += 1
        return response

    async def StoreCompletion(
        self, request: cache_pb2.StoreCompletionRequest, context: Any
    ) -> cache_pb2.StoreCompletionResponse:
        """Answer the followers at once, then keep the answer, then let the flight go."""
        tenant = current_identity().tenant_id
        done = self._stored.get((tenant, request.lease_id)) if request.lease_id else None
        if done is not None:
            return done
        if not request.HasField("completion"):
            raise required("completion")
        question = _question(request.request)
        asked = self._answers.ask(question)
        leased_key = self._board.key_of(request.lease_id, tenant)
        if leased_key and leased_key != asked.key:
            raise invalid_argument("the lease is for another request", field="request", reason=Reason.LEASE_MISMATCH)
        # A lease that is no longer in force changes nothing about the answer: it is kept all the same.
        if leased_key:
            self._board.finish(request.lease_id, request.completion, settled=False)
        try:
            response = await self._keep(asked, request)
        finally:
            if leased_key:
                self._board.settle(request.lease_id)
        if request.lease_id:
            self._stored[tenant, request.lease_id] = response
            while len(self._stored) > _REMEMBERED_STORES:
                self._stored.popitem(last=False)
        return response

    async def PublishCompletion(
        self, requests: AsyncIterator[cache_pb2.PublishCompletionRequest], context: Any
    ) -> cache_pb2.PublishCompletionResponse:
        """Pass the leader's pieces to the followers of its flight."""
        tenant = current_identity().tenant_id
        lease_id = ""
        try:
            async for request in requests:
                if not lease_id:
                    lease_id = request.lease_id
                    if not lease_id:
                        raise required("lease_id")
                    if not self._board.open_stream(lease_id, tenant):
                        lease_id = ""
                        raise _lease_gone()
                if request.HasField("delta") and not self._board.publish(lease_id, request.delta):
                    raise _lease_gone()
                if request.HasField("finished"):
                    count = self._board.finish(lease_id, request.finished, settled=False)
                    annotate({"tenth.cache.followers": count})
                    return cache_pb2.PublishCompletionResponse(follower_count=count)
            raise TenthError(
                Code.INVALID_ARGUMENT, Reason.PUBLISH_UNFINISHED, "the stream ended without finished", "finished"
            )
        finally:
            # Also on cancellation: a leader that died passes its lease on.
            if lease_id:
                self._board.close_stream(lease_id)

    async def FollowCompletion(
        self, request: cache_pb2.FollowCompletionRequest, context: Any
    ) -> AsyncIterator[cache_pb2.FollowCompletionResponse]:
        """The events of a flight; the stored answer when the flight is over."""
        tenant = current_identity().tenant_id
        async with contextlib.aclosing(self._board.follow(request.flight_id, tenant)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    yield cache_pb2.FollowCompletionResponse(delta=event.piece)
                elif isinstance(event, Finished):
                    annotate({"tenth.cache.outcome": "followed"})
                    yield cache_pb2.FollowCompletionResponse(finished=event.answer)
                    return
                else:
                    annotate({"tenth.cache.outcome": "promoted"})
                    yield cache_pb2.FollowCompletionResponse(promoted=_lease(event.lease))
                    return
        # The flight is over or was another process's: its id begins with the exact key.
        key = request.flight_id.partition(".")[0]
        entry = await self._answers.find_exact(key, tenant, current_identity().user_id) if key else None
        if entry is None:
            raise TenthError(Code.NOT_FOUND, Reason.FLIGHT_GONE, "the flight is over; look the request up again")
        annotate({"tenth.cache.outcome": "followed", "tenth.cache.entry_id": entry.entry_id})
        yield cache_pb2.FollowCompletionResponse(finished=chat_pb2.Completion.FromString(entry.completion))

    async def ReleaseLease(
        self, request: cache_pb2.ReleaseLeaseRequest, context: Any
    ) -> cache_pb2.ReleaseLeaseResponse:
        """A follower is promoted, or the next request leads."""
        if not request.lease_id:
            raise required("lease_id")
        tenant = current_identity().tenant_id
        released, followers = self._board.release(request.lease_id, tenant, request.only_if_unfollowed)
        return cache_pb2.ReleaseLeaseResponse(released=released, follower_count=followers)

    async def Embed(self, request: cache_pb2.EmbedRequest, context: Any) -> cache_pb2.EmbedResponse:
        """Texts to vectors."""
        if len(request.texts) > MAX_EMBED_TEXTS:
            raise invalid_argument(
                f"at most {MAX_EMBED_TEXTS} texts", field="texts", reason=Reason.EMBED_TOO_MANY_TEXTS
            )
        for index, text in enumerate(request.texts):
            if len(text) > MAX_EMBED_CHARACTERS:
                raise invalid_argument(
                    f"at most {MAX_EMBED_CHARACTERS} characters",
                    field=f"texts[{index}]",
                    reason=Reason.EMBED_TEXT_TOO_LONG,
                )
        embedded = await self._answers.embed(request.texts)
        annotate({"tenth.cache.texts": len(request.texts), "tenth.cache.compute_micros": embedded.compute_micros})
        embedder = self._answers.embedder
        return cache_pb2.EmbedResponse(
            embeddings=[_embedding(vector, embedder) for vector in embedded.vectors],
            compute_micros=embedded.compute_micros,
        )

    async def ReportAnswerQuality(
        self, request: cache_pb2.ReportAnswerQualityRequest, context: Any
    ) -> cache_pb2.ReportAnswerQualityResponse:
        """Retire an entry that answered wrongly; count what was right and wrong."""
        if not request.entry_id:
            raise required("entry_id")
        outcome = await self._reports.take(
            current_identity().tenant_id,
            _uuid(request.entry_id, "entry_id"),
            request.correct,
            request.question,
            request.report_id,
        )
        if outcome.suspended:
            annotate({"tenth.cache.suspended": outcome.suspended})
        return cache_pb2.ReportAnswerQualityResponse(
            retired=outcome.retired, namespace_suspended=bool(outcome.suspended)
        )

    async def RestoreNamespace(
        self, request: cache_pb2.RestoreNamespaceRequest, context: Any
    ) -> cache_pb2.RestoreNamespaceResponse:
        """End a suspension."""
        if not request.namespace:
            raise required("namespace")
        tenant = current_identity().tenant_id
        standing = await self._reports.restore(tenant, request.namespace)
        policy = self._reports.policies(tenant, request.namespace)
        return cache_pb2.RestoreNamespaceResponse(namespace=namespace_to_proto(request.namespace, policy, standing))

    async def InspectLookup(
        self, request: cache_pb2.InspectLookupRequest, context: Any
    ) -> cache_pb2.InspectLookupResponse:
        """What a lookup would find, and why."""
        if not 0 <= request.candidate_count <= MAX_CANDIDATES:
            raise invalid_argument(f"0..{MAX_CANDIDATES}", field="candidate_count")
        question = _question(request.request)
        asked = self._answers.ask(question)
        response = cache_pb2.InspectLookupResponse(exact_key=asked.key, embedded_text=asked.text)
        bypass = bypass_reason(question, self._policy)
        if bypass is BypassReason.TOO_LARGE:
            response.outcome, response.reason = "bypass", bypass.value
            return response
        suspended = self._reports.evidence.is_suspended(question.tenant_id, question.namespace)
        outcome = await self._answers.find(asked, count_hit=False, skip_semantic=lambda: bool(suspended))
        response.outcome = "hit" if outcome.found is not None else "miss"
        response.reason = outcome.reason
        if suspended and outcome.found is None:
            response.reason = _suspended_miss(suspended)
        if bypass is not None:
            response.outcome, response.reason = "bypass", bypass.value
        response.mode = self._answers.rules(question).mode.value
        for verdict in await self._answers.inspect(asked, request.candidate_count or 5):
            found = verdict.found
            response.needed_probability = response.needed_probability or verdict.needed
            response.candidates.add(
                entry_id=found.entry.entry_id,
                question=found.entry.question,
                similarity=found.similarity,
                would_serve=verdict.serve and bypass is None and not suspended,
                reasons=verdict.reasons,
                probability=verdict.probability,
                features=(
                    cache_pb2.FeatureContribution(name=part.name, value=part.value, contribution=part.amount)
                    for part in verdict.contributions
                ),
                provenance=provenance(found.entry, self._answers.hit_count(found.entry)),
            )
            if response.outcome == "miss" and len(response.candidates) == 1 and not verdict.serve and not suspended:
                response.reason = (
                    f"the nearest is {next(line for line in verdict.reasons if line.startswith('refused'))}"
                )
        return response

    async def InvalidateEntries(
        self, request: cache_pb2.InvalidateEntriesRequest, context: Any
    ) -> cache_pb2.InvalidateEntriesResponse:
        """Delete by filter, within the tenant."""
        tenant = current_identity().tenant_id
        ids = [_uuid(value, f"entry_ids[{index}]") for index, value in enumerate(request.entry_ids)]
        chosen = selection(tenant, request)
        if len(chosen) == 1 and not ids and not request.all:
            raise invalid_argument("no filter is set; set `all` to delete every entry of the tenant", field="all")
        count = await self._answers.delete(chosen, ids, request.dry_run)
        if ids:
            aliases = (*chosen, aliases_of_entries(ids))
            count += await self._answers.delete(aliases, (), request.dry_run)
        annotate({"tenth.cache.entries": count, "tenth.cache.dry_run": request.dry_run})
        return cache_pb2.InvalidateEntriesResponse(entry_count=count)

    async def DeleteUserEntries(
        self, request: cache_pb2.DeleteUserEntriesRequest, context: Any
    ) -> cache_pb2.DeleteUserEntriesResponse:
        """Delete what came from one end user."""
        if not request.user_id:
            raise required("user_id")
        tenant = current_identity().tenant_id
        own = Condition("tenant", (tenant,))
        count = await self._answers.delete((own, Condition("user_id", (request.user_id,))), (), False)
        count += await self._answers.delete((own, aliases_of_user(request.user_id)), (), False)
        return cache_pb2.DeleteUserEntriesResponse(entry_count=count)

    async def GetStats(self, request: cache_pb2.GetStatsRequest, context: Any) -> cache_pb2.GetStatsResponse:
        """Counts of the tenant."""
        tenant = current_identity().tenant_id
        conditions = [Condition("tenant", (tenant,))]
        if request.namespace:
            conditions.append(Condition("namespace", (request.namespace,)))
        total: Counter[str] = Counter()
        for (owner, namespace), counts in self._counts.items():
            if owner == tenant and request.namespace in ("", namespace):
                total.update(counts)
        return cache_pb2.GetStatsResponse(
            entry_count=await self._answers.count(tuple(conditions)),
            exact_hit_count=total["exact"],
            semantic_hit_count=total["semantic"],
            follow_count=total["follow"],
            miss_count=total["miss"],
            bypass_counts={
                name.removeprefix("bypass:"): count for name, count in total.items() if name.startswith("bypass:")
            },
            embedder=self._answers.embedder.version,
            store=self._store_name,
            entry_bytes=await self._answers.size_bytes(tuple(conditions)),
            private_entry_count=await self._answers.count((*conditions, Condition("sharing", ("private",)))),
            not_stored_counts={
                name.removeprefix(_NOT_STORED): count for name, count in total.items() if name.startswith(_NOT_STORED)
            },
        )

    async def ListNamespaces(
        self, request: cache_pb2.ListNamespacesRequest, context: Any
    ) -> cache_pb2.ListNamespacesResponse:
        """The namespaces that rules name or that were asked in since the start."""
        tenant = current_identity().tenant_id
        seen = {namespace for owner, namespace in self._counts if owner == tenant and namespace}
        known = self._answers.namespaces.named(tenant).union(self._reports.evidence.namespaces(tenant))
        names = sorted({DEFAULT_NAMESPACE} | seen | known)
        return cache_pb2.ListNamespacesResponse(
            namespaces=[
                namespace_to_proto(
                    name, self._answers.namespaces.of(tenant, name), self._reports.evidence.standing(tenant, name)
                )
                for name in names
            ]
        )

    async def ExportEntries(
        self, request: cache_pb2.ExportEntriesRequest, context: Any
    ) -> AsyncIterator[cache_pb2.ExportEntriesResponse]:
        """The tenant's entries, one message each."""
        async for entry in export(self._answers, current_identity().tenant_id, request.namespace):
            yield cache_pb2.ExportEntriesResponse(entry=entry)

    async def ImportEntries(
        self, requests: AsyncIterator[cache_pb2.ImportEntriesRequest], context: Any
    ) -> cache_pb2.ImportEntriesResponse:
        """Exported entries, and pairs as if they had been asked and answered now."""
        tenant = current_identity().tenant_id
        rules = self._answers.namespaces.of

        async def keep(asked: Asked, store: cache_pb2.StoreCompletionRequest) -> cache_pb2.StoreCompletionResponse:
            return await self._keep(asked, store, rate_limited=False)

        importer = Importer(self._answers, self._policy, lambda name: rules(tenant, name).ttl_seconds, tenant, keep)
        response = await importer.run(requests)
        annotate({"tenth.cache.entries": response.stored_count})
        return response

    def _counts_of(self, tenant: str, namespace: str) -> Counter[str]:
        found = self._counts.get((tenant, namespace))
        if found is None:
            oldest = next((key for key in self._counts if key[1]), None)
            if oldest is not None and len(self._counts) >= _COUNTED_NAMESPACES:
                # Callers name namespaces as they like: the oldest one's counts go on in the tenant's total alone.
                self._counts.setdefault((oldest[0], ""), Counter()).update(self._counts.pop(oldest))
            found = self._counts[tenant, namespace] = Counter()
        return found

    def _miss(
        self,
        asked: Asked,
        request: cache_pb2.LookupCompletionRequest,
        response: cache_pb2.LookupCompletionResponse,
        counts: Counter[str],
    ) -> None:
        tenant = asked.question.tenant_id
        joined: Lease | str
        if request.without_lease:
            joined = Lease("", 0.0)
        else:
            joined = self._explain(asked) if request.dry_run else self._board.join(asked.key, tenant)
        if isinstance(joined, Lease):
            response.lease.CopyFrom(_lease(joined))
        else:
            response.follow.flight_id = joined
        outcome = "lease" if isinstance(joined, Lease) else "follow"
        annotate({"tenth.cache.outcome": outcome})
        if not request.dry_run:
            counts["miss" if outcome == "lease" else "follow"] += 1

    def _may_write(self, question: Question) -> bool:
        """Take one from the namespace's rate of stored answers, and from the user's."""
        key = (question.tenant_id, question.namespace)
        rules = self._answers.namespaces.of(*key)
        buckets: list[tuple[tuple[str, ...], float]] = [(key, rules.writes_per_minute)]
        if question.user_id:
            buckets.append(((*key, question.user_id), rules.user_writes_per_minute))
        return self._rates.take(*buckets)

    def _explain(self, asked: Asked) -> Lease | str:
        return self._board.in_flight(asked.key) or Lease("", 0.0)

    async def _keep(
        self, asked: Asked, request: cache_pb2.StoreCompletionRequest, rate_limited: bool = True
    ) -> cache_pb2.StoreCompletionResponse:
        reason: str | None = bypass_reason(asked.question, self._policy)
        answer = answer_from_proto(request.completion, request.request.sampling.max_output_tokens)
        reason = reason or not_stored_reason(asked.question, answer, request.share_only)
        if reason is None and rate_limited and not self._may_write(asked.question):
            reason = NotStoredReason.WRITE_RATE
        if reason is not None:
            annotate({"tenth.cache.not_stored_reason": str(reason)})
            self._counts_of(asked.question.tenant_id, asked.question.namespace)[f"{_NOT_STORED}{reason}"] += 1
            return cache_pb2.StoreCompletionResponse(not_stored_reason=str(reason))
        embedder = self._answers.embedder
        given = request.embedding
        usable = given.embedder == embedder.version and len(given.values) == embedder.dimension
        entry = await self._answers.keep(
            asked,
            request.completion.SerializeToString(),
            request.completion.model,
            int(request.completion.tier),
            tag_keywords(request.request.tags),
            list(given.values) if usable else None,
            request.price_book_version,
        )
        annotate({"tenth.cache.entry_id": entry.entry_id})
        return cache_pb2.StoreCompletionResponse(entry_id=entry.entry_id)


def piece_size(delta: chat_pb2.CompletionDelta) -> int:
    """Bytes that a kept piece counts for."""
    return delta.ByteSize() + 64


def _lease(lease: Lease) -> cache_pb2.Lease:
    message = cache_pb2.Lease(lease_id=lease.lease_id)
    message.ttl.FromNanoseconds(int(lease.ttl_seconds * 1e9))
    return message


def _question(request: chat_pb2.CompletionRequest) -> Question:
    identity = current_identity()
    return question_from_proto(request, identity.tenant_id, identity.user_id)


def _hit(found: Found, exact: bool, probability: float, served_count: int) -> cache_pb2.CacheHit:
    hit = cache_pb2.CacheHit(
        completion=chat_pb2.Completion.FromString(found.entry.completion),
        kind=cache_pb2.HIT_KIND_EXACT if exact else cache_pb2.HIT_KIND_SEMANTIC,
        similarity=found.similarity,
        entry_id=found.entry.entry_id,
        probability=probability,
        provenance=provenance(found.entry, served_count),
    )
    hit.create_time.FromNanoseconds(int(found.entry.created * 1e9))
    return hit


def _embedding(vector: Vector, embedder: Embedder) -> chat_pb2.Embedding:
    return chat_pb2.Embedding(values=vector.tolist(), embedder=embedder.version)


def _suspended_miss(why: str) -> str:
    return f"no exact match; the namespace serves exact hits only: {why}"


def _uuid(value: str, field: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise invalid_argument("not the id of an entry", field=field) from None


def _lease_gone() -> TenthError:
    return TenthError(Code.NOT_FOUND, Reason.LEASE_GONE, "the lease has passed on or is over", "lease_id")
