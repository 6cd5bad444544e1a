"""Admission: form, identity, tenant, rate and prices, all from memory. Nothing is written and nothing spent here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from random import Random
from typing import Final
from uuid import UUID

from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import halves_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity, act_for
from mesh.errors import Code, TenthError, invalid_argument
from mesh.receipt import price_of
from mesh.telemetry import current_trace_id
from mesh.validation import validate
from services.orchestrator import policy
from services.orchestrator.call import Call, Later
from services.orchestrator.errors import Reason
from services.orchestrator.half_state import prices_of
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.snapshot import Snapshot

_MAX_TRACKED_TENANTS = 100_000
_SAVING_LAYERS = frozenset(("cache", "routing", "compression"))

DEFAULT_NAMESPACE = "default"
"""The cache's name for the namespace of requests that name none."""
_OF_THE_ASKER: Final = ("request_id", "user_id", "project_id", "tags")
_OF_COST_AND_AGE: Final = ("tier_ceiling", "completion_window", "cache_mode", "cache_max_age", "compression_mode")
"""Fields that the cache's exact key leaves out."""


class RateLimiter:
    """Requests per minute by tenant: a token bucket each, refilled continuously. Holds for this replica."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, tenant_id: str, per_minute: int) -> None:
        """Take one request out of the tenant's bucket. Raises RATE_LIMITED with the time until the next."""
        if per_minute <= 0:
            return
        now = self._now()
        level, since = self._buckets.get(tenant_id, (float(per_minute), now))
        # A clock that is set back gives nothing and takes nothing: the tenant must not wait until it has caught up.
        level = min(per_minute, level + max(now - since, 0.0) * per_minute / 60)
        if level < 1:
            self._buckets[tenant_id] = (level, now)
            raise TenthError(
                Code.RESOURCE_EXHAUSTED,
                Reason.RATE_LIMITED,
                f"tenant {tenant_id} has used its {per_minute} requests per minute",
                retry_after_seconds=(1 - level) * 60 / per_minute,
            )
        if len(self._buckets) >= _MAX_TRACKED_TENANTS:
            self._buckets.clear()
        self._buckets[tenant_id] = (level - 1, now)


class Admission:
    """Turns a request into a call, or refuses it."""

    def __init__(
        self, snapshot: Snapshot, settings: OrchestratorSettings, now: Callable[[], float], random: Random
    ) -> None:
        self._snapshot = snapshot
        self._settings = settings
        self._now = now
        self._random = random
        self._rate = RateLimiter(now)

    def identify(self, request: chat_pb2.CompletionRequest) -> bytes:
        """Check the form, give the request an id if it has none; returns the payload's digest."""
        validate(request, self._settings.max_prompt_bytes)
        act_for(request.user_id, request.project_id)  # Also for an answer that is kept already: it may be a user's own.
        if not request.request_id:
            request.request_id = str(UUID(int=self._random.getrandbits(128), version=4))
        return payload_digest(request)

    def admit(
        self, request: chat_pb2.CompletionRequest, digest: bytes, *, streaming: bool, later: Later | None = None
    ) -> Call:
        """Check identity, tenant, rate and the baseline's price. ``later``: it is answered in two halves.

        What goes at batch prices takes no place of a caller who waits; and what is in a batch is in no control share.
        """
        identity = act_for(request.user_id, request.project_id)
        tenant = self._snapshot.tenant(identity.tenant_id)
        created = self._now()
        prices = self._snapshot.prices(created)
        price_of(tenant.baseline_model, prices)
        if later is None or not later.batch_prices:
            self._rate.admit(identity.tenant_id, tenant.max_requests_per_minute)
        caller_set_limit = self._limit(request)
        return Call(
            request=request,
            digest=digest,
            identity=identity,
            tenant=tenant,
            prices=prices,
            price_book_version=self._snapshot.price_book_version,
            created=created,
            trace_id=current_trace_id(),
            streaming=streaming,
            caller_set_limit=caller_set_limit,
            shard=self._shard(identity, request),
            later=later,
            control=None
            if later is not None
            else policy.control_side(
                identity.tenant_id,
                request.request_id,
                tenant.control_share,
                layers_on=self._layers_on(request, tenant),
            ),
            # Attempts are numbered from a random base: a retry of the same request on another replica, or after a
            # crash, must never share a number with an attempt that was really paid for.
            attempt_base=self._random.randrange(2, 2_000_000) * 1000,
        )

    def tenant(self, request: chat_pb2.CompletionRequest) -> ledger_pb2.TenantPolicy:
        """The tenant of a request that goes elsewhere, without taking a place among those of this minute."""
        return self._snapshot.tenant(act_for(request.user_id, request.project_id).tenant_id)

    def resume(
        self,
        request: chat_pb2.CompletionRequest,
        digest: bytes,
        state: halves_pb2.PreparedState,
        paid_models: Iterable[str],
    ) -> Call:
        """A call again whose first half is done, as it was admitted then: day, baseline and prices.

        ``paid_models`` are those of attempts that were made meanwhile. Raises INVALID_FIELD for another one's state.
        """
        identity = act_for(request.user_id, request.project_id)
        if (state.tenant_id, state.payload_digest) != (identity.tenant_id, digest):
            raise invalid_argument("the state of another request", field="state")
        created = state.create_time.ToNanoseconds() / 1e9
        now_known = state.price_book_version == self._snapshot.price_book_version
        return Call(
            request=request,
            digest=digest,
            identity=identity,
            tenant=ledger_pb2.TenantPolicy(
                tenant_id=identity.tenant_id,
                baseline_model=state.baseline_model,
                disabled_layers=self._snapshot.disabled_layers(identity.tenant_id),
            ),
            prices=prices_of(state, self._snapshot.prices(created) if now_known else None, paid_models),
            price_book_version=state.price_book_version,
            created=created,
            trace_id=state.trace_id,
            streaming=False,
            attempt_base=state.attempt - 1,
            caller_set_limit=self._limit(request),
            shard=self._shard(identity, request),
            later=Later(True, 0.0),
            hops=list(state.hops),
            overheads=list(state.overheads),
            compute_micros=state.compute_micros,
            attempts_unknown=state.attempts_unknown,
            reservation_id=state.reservation_id,
            downgraded=state.downgraded,
            excluded=list(state.excluded_models),
            routed=state.routed,
            compressed_for=state.compressed_for,
            told_tokens=state.told_input_token_count,
            token_correction=state.token_correction,
        )

    def _limit(self, request: chat_pb2.CompletionRequest) -> bool:
        """Give the request a limit if it has none; True when the caller set one."""
        caller_set_limit = request.sampling.HasField("max_output_tokens")
        if not caller_set_limit:
            request.sampling.max_output_tokens = self._settings.default_max_output_tokens
        return caller_set_limit

    def _shard(self, identity: Identity, request: chat_pb2.CompletionRequest) -> str:
        """Routing key of the request's cache replica."""
        if self._settings.cache_shard_by == "request":
            return f"{identity.tenant_id}\x00{question_digest(request).hex()}"
        return f"{identity.tenant_id}\x00{request.namespace or DEFAULT_NAMESPACE}"

    def _layers_on(self, request: chat_pb2.CompletionRequest, tenant: ledger_pb2.TenantPolicy) -> bool:
        """True when every layer may work on the request, and the baseline model could answer it instead."""
        wanted = request.policy
        baseline = self._snapshot.model(tenant.baseline_model)
        return (
            not (wanted.model or wanted.tier_floor or wanted.tier_ceiling)
            and wanted.cache_mode not in (chat_pb2.CACHE_MODE_OFF, chat_pb2.CACHE_MODE_WRITE)
            and wanted.compression_mode != chat_pb2.COMPRESSION_MODE_OFF
            and _SAVING_LAYERS.isdisjoint(tenant.disabled_layers)
            and baseline is not None
            and (baseline.tools or not request.tools)
        )


def payload_digest(request: chat_pb2.CompletionRequest) -> bytes:
    """SHA-256 of what the request asks for, its id left out."""
    plain = chat_pb2.CompletionRequest()
    plain.CopyFrom(request)
    plain.ClearField("request_id")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()


def question_digest(request: chat_pb2.CompletionRequest) -> bytes:
    """SHA-256 of what decides the answer: requests that the cache takes for the same one have the same digest.

    Who asks, what it is filed under, and what the answer may cost or how old it may be are left out.
    """
    plain = chat_pb2.CompletionRequest()
    plain.CopyFrom(request)
    for label in _OF_THE_ASKER:
        plain.ClearField(label)
    for wish in _OF_COST_AND_AGE:
        plain.policy.ClearField(wish)
    if not plain.policy.ByteSize():
        plain.ClearField("policy")  # An empty one asks for nothing, and would not look like none.
    plain.namespace = plain.namespace or DEFAULT_NAMESPACE
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()
