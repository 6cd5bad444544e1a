"""The services that an orchestrator meets, played by scriptable servicers on one real loopback socket.

Each method records what it was asked and answers what its script says: a message, an error, a function of the
request, or (for streams) a list of events, errors and pauses. ``then`` scripts the next calls, ``on`` all others.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tenth.batch.v1 import batch_pb2, batch_pb2_grpc
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Authenticator, Identity, Signer, current_identity, set_identity
from mesh.channel import connect
from mesh.errors import Code, TenthError, unavailable
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.telemetry import start_telemetry
from mesh.testing import KEY, memory_telemetry
from services.orchestrator.__main__ import assemble
from services.orchestrator.settings import OrchestratorSettings

Script = Any
"""A message, a TenthError, a function of the request (plain or async) or a stream's list of events and pauses."""

LOCAL, MINI, OPUS = "local", "mini", "opus"
"""A model of each tier. OPUS is the baseline; LOCAL is self-hosted."""
TIERS: dict[str, chat_pb2.Tier.ValueType] = {
    LOCAL: chat_pb2.TIER_SIMPLE,
    MINI: chat_pb2.TIER_MEDIUM,
    OPUS: chat_pb2.TIER_COMPLEX,
}
PRICES = {LOCAL: (10, 20), MINI: (1_000, 2_000), OPUS: (5_000, 25_000)}
"""USD-cents-like whole prices: nano-USD per token, input and output."""
KEYS = {"app": "acme", "plain": "acme", "hard": "hard", "stranger": "nobody", "limited": "limited"}
"""API keys: the caller's name is its key; "plain" may not name users."""

DOWN = unavailable("the fake is down")
AMONG_FAKES: Any = object()
"""Value of an address setting: where the fakes are."""
BATCH_PRICES = {MINI: (500, 1_000)}
"""The same in a batch, of the models that have such prices."""
BATCH = Identity(tenant_id="acme", caller="app", may_assert_user=True)
"""On whose behalf the batch service calls."""
EMBEDDING = chat_pb2.Embedding(values=[0.6, 0.8], embedder="fake@1")


@dataclass(slots=True)
class Seen:
    """One call that a fake got."""

    method: str
    request: Any
    identity: Identity
    replica: int


def slow(seconds: float, script: Script = None) -> Callable[[Any], Any]:
    """A script that answers late."""

    async def answer(request: Any) -> Any:
        await asyncio.sleep(seconds)
        return script

    return answer


class Fakes:
    """What the fakes shall answer and what they have seen."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.cancelled: list[str] = []
        self.published: list[cache_pb2.PublishCompletionRequest] = []
        self.settled: dict[str, list[receipt_pb2.Receipt]] = {}
        self.switches: list[str] = []
        self.control_share = 0.0
        self.snapshot_version = 1
        self.prices = dict(PRICES)
        self.price_book_version = 7
        self._scripts: dict[str, Script] = {}
        self._next: dict[str, deque[Script]] = {}
        self._count = 0

    def on(self, method: str, script: Script) -> None:
        """Script a method; None takes the fake's own answer again."""
        self._scripts[method] = script

    def then(self, method: str, *scripts: Script) -> None:
        """Script the next calls of a method; None stands for the fake's own answer."""
        self._next.setdefault(method, deque()).extend(scripts)

    def requests(self, method: str) -> list[Any]:
        """What a method was asked."""
        return [seen.request for seen in self.seen if seen.method == method]

    def count(self, method: str) -> int:
        """How often a method was asked."""
        return len(self.requests(method))

    def receipts(self, request_id: str) -> list[receipt_pb2.Receipt]:
        """The receipts that the ledger was given for a request, without repeated deliveries."""
        return self.settled.get(request_id, [])

    def change_policy(self, *disabled_layers: str) -> None:
        """Turn layers off for every tenant."""
        self.switches = list(disabled_layers)
        self.snapshot_version += 1

    async def unary(self, method: str, request: Any, replica: int) -> Any:
        """Answer one call by script."""
        self.seen.append(Seen(method, request, current_identity(), replica))
        script = await self._script(method, request)
        if isinstance(script, TenthError):
            raise script
        return getattr(self, f"_{method}")(request) if script is None else script

    async def stream(self, method: str, request: Any, replica: int) -> AsyncIterator[Any]:
        """Answer one stream by script."""
        self.seen.append(Seen(method, request, current_identity(), replica))
        script = await self._script(method, request)
        events = getattr(self, f"_{method}")(request) if script is None else script
        try:
            for event in [events] if isinstance(events, TenthError) else events:
                if isinstance(event, TenthError):
                    raise event
                if isinstance(event, float | int):
                    await asyncio.sleep(event)
                else:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(method)
            raise

    async def _script(self, method: str, request: Any) -> Script:
        waiting = self._next.get(method)
        script = waiting.popleft() if waiting else self._scripts.get(method)
        if callable(script):
            try:
                script = script(request)
                if inspect.isawaitable(script):
                    script = await script
            except asyncio.CancelledError:
                self.cancelled.append(method)
                raise
        return script

    def _id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    # The fakes' own answers.

    def _LookupCompletion(self, request: Any) -> Any:
        lease = cache_pb2.Lease(lease_id=self._id("lease"))
        return cache_pb2.LookupCompletionResponse(lease=lease, embedding=EMBEDDING, compute_micros=1000)

    def _StoreCompletion(self, request: Any) -> Any:
        return cache_pb2.StoreCompletionResponse(entry_id="" if request.share_only else self._id("entry"))

    def _ReleaseLease(self, request: Any) -> Any:
        return cache_pb2.ReleaseLeaseResponse(released=True)

    def _InspectLookup(self, request: Any) -> Any:
        return cache_pb2.InspectLookupResponse(outcome="miss", reason="nothing near")

    def _ReportAnswerQuality(self, request: Any) -> Any:
        return cache_pb2.ReportAnswerQualityResponse(retired=not request.correct)

    def _DeleteUserEntries(self, request: Any) -> Any:
        return cache_pb2.DeleteUserEntriesResponse(entry_count=3)

    def _SelectModel(self, request: Any) -> Any:
        ceiling = min(filter(None, (request.tier_ceiling, request.request.policy.tier_ceiling)), default=3)
        floor = request.request.policy.tier_floor
        wanted = [request.request.policy.model] if request.request.policy.model else [MINI, OPUS, LOCAL]
        for name in wanted:
            if name not in TIERS:
                raise TenthError(Code.NOT_FOUND, "UNKNOWN_MODEL", f"no model {name!r}", "request.policy.model")
            if name not in request.excluded_models and floor <= TIERS[name] <= ceiling:
                return router_pb2.SelectModelResponse(
                    model=name, tier=TIERS[name], strategy=router_pb2.STRATEGY_FEATURES, reason="scripted"
                )
        raise TenthError(Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", "none is left")

    def _ListModels(self, request: Any) -> Any:
        return router_pb2.ListModelsResponse(
            models=[
                router_pb2.CatalogModel(
                    model=name,
                    tier=tier,
                    context_window_tokens=8192,
                    self_hosted=name == LOCAL,
                    routable=True,
                    abilities=router_pb2.ModelAbilities(tools=True, korean=True),
                )
                for name, tier in TIERS.items()
            ]
        )

    def _DeleteUserOutcomes(self, request: Any) -> Any:
        return router_pb2.DeleteUserOutcomesResponse(outcome_count=2)

    def _ReportOutcome(self, request: Any) -> Any:
        return router_pb2.ReportOutcomeResponse()

    def _CheckAnswer(self, request: Any) -> Any:
        return router_pb2.CheckAnswerResponse(accepted=True, confidence=0.9, reason="0.90 is enough")

    def _RecordCompletion(self, request: Any) -> Any:
        return router_pb2.RecordCompletionResponse()

    def _CompressPrompt(self, request: Any) -> Any:
        return compressor_pb2.CompressPromptResponse(
            messages=[message("short")],
            original_input_token_count=100,
            compressed_input_token_count=80,
            baseline_input_token_count=100 if request.model == request.baseline_model else 110,
            strategies=[compressor_pb2.StrategyResult(strategy="cleanup", removed_token_count=20)],
        )

    def _ReserveFunds(self, request: Any) -> Any:
        return ledger_pb2.ReserveFundsResponse(
            decision=ledger_pb2.RESERVE_DECISION_OK, reservation_id=self._id("reservation"), reserved_nano_usd=10
        )

    def _ReleaseFunds(self, request: Any) -> Any:
        return ledger_pb2.ReleaseFundsResponse()

    def _SettleReceipts(self, request: Any) -> Any:
        for receipt in request.receipts:
            known = self.settled.setdefault(receipt.facts.request_id, [])
            if receipt not in known:
                known.append(receipt)
        results = [ledger_pb2.SettleResult(request_id=receipt.facts.request_id) for receipt in request.receipts]
        return ledger_pb2.SettleReceiptsResponse(results=results)

    def _GetReceipt(self, request: Any) -> Any:
        known = self.settled.get(request.request_id)
        if not known:
            raise TenthError(Code.NOT_FOUND, "UNKNOWN_RECEIPT", "not here")
        found = ledger_pb2.GetReceiptResponse(receipt=known[-1])
        found.receipt.state = receipt_pb2.RECEIPT_STATE_FINAL
        return found

    def _PreviewCompression(self, request: Any) -> Any:
        return compressor_pb2.PreviewCompressionResponse(compression=self._CompressPrompt(request.compression))

    def _RecordUsage(self, request: Any) -> Any:
        return compressor_pb2.RecordUsageResponse(counted=True)

    def _GetAdmissionSnapshot(self, request: Any) -> Any:
        version = str(self.snapshot_version)
        if request.version == version:
            return ledger_pb2.GetAdmissionSnapshotResponse(unchanged=True, version=version)
        reply = ledger_pb2.GetAdmissionSnapshotResponse(version=version, price_book_version=self.price_book_version)
        for name, (price_in, price_out) in self.prices.items():
            reply.prices.add(
                model=name,
                input_nano_usd_per_million_tokens=price_in * 1_000_000,
                output_nano_usd_per_million_tokens=price_out * 1_000_000,
                confirmed=True,
            )
            if name in BATCH_PRICES:
                batch_in, batch_out = BATCH_PRICES[name]
                reply.prices[-1].batch_input_nano_usd_per_million_tokens = batch_in * 1_000_000
                reply.prices[-1].batch_output_nano_usd_per_million_tokens = batch_out * 1_000_000
        reply.prices.add(model="cpu", cpu_hour_nano_usd=36_000_000, confirmed=True)
        for tenant in ("acme", "hard", "limited"):
            reply.tenants.add(
                tenant_id=tenant,
                has_hard_budget=tenant == "hard",
                baseline_model=OPUS,
                disabled_layers=self.switches,
                control_share=self.control_share,
                max_requests_per_minute=2 if tenant == "limited" else 0,
            )
        return reply

    def _GenerateText(self, request: Any) -> Any:
        return generated("Hello.")

    def _EnqueueCompletion(self, request: Any) -> Any:
        return batch_pb2.EnqueueCompletionResponse()

    def _GetQueuedCompletion(self, request: Any) -> Any:
        raise TenthError(Code.NOT_FOUND, "UNKNOWN_REQUEST", "not here", "request_id")

    def _DeleteUserItems(self, request: Any) -> Any:
        return batch_pb2.DeleteUserItemsResponse(item_count=4)

    def _StreamGenerateText(self, request: Any) -> Any:
        return [began(), piece("Hel"), piece("lo."), ended()]


class _Cache(cache_pb2_grpc.CacheServiceServicer):
    def __init__(self, fakes: Fakes, replica: int) -> None:
        self._fakes, self._replica = fakes, replica

    async def FollowCompletion(self, request: Any, context: Any) -> Any:  # type: ignore[override]  # The stubs know generators only.
        async for event in self._fakes.stream("FollowCompletion", request, self._replica):
            await context.write(event)

    async def PublishCompletion(self, request_iterator: Any, context: Any) -> Any:
        async for item in request_iterator:
            self._fakes.published.append(item)
        return cache_pb2.PublishCompletionResponse()


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, fakes: Fakes, replica: int) -> None:
        self._fakes, self._replica = fakes, replica

    async def StreamGenerateText(self, request: Any, context: Any) -> Any:  # type: ignore[override]  # The stubs know generators only.
        async for event in self._fakes.stream("StreamGenerateText", request, self._replica):
            await context.write(event)


def _unary(*methods: str) -> Callable[[type[Any]], type[Any]]:
    """Give a servicer class these unary methods, answered by its Fakes."""

    def decorate(kind: type[Any]) -> type[Any]:
        def made(method: str) -> Any:
            async def handle(self: Any, request: Any, context: Any) -> Any:
                return await self._fakes.unary(method, request, self._replica)

            return handle

        namespace = {method: made(method) for method in methods}
        return type(kind.__name__, (kind,), namespace)

    return decorate


class _Plain:
    def __init__(self, fakes: Fakes, replica: int) -> None:
        self._fakes, self._replica = fakes, replica


_SERVICES: list[tuple[Any, Any, str]] = [
    (
        cache_pb2_grpc.add_CacheServiceServicer_to_server,
        _unary(
            "LookupCompletion",
            "StoreCompletion",
            "ReleaseLease",
            "InspectLookup",
            "ReportAnswerQuality",
            "DeleteUserEntries",
        )(_Cache),
        "tenth.cache.v1.CacheService",
    ),
    (
        router_pb2_grpc.add_RouterServiceServicer_to_server,
        _unary("SelectModel", "ListModels", "DeleteUserOutcomes", "ReportOutcome", "CheckAnswer", "RecordCompletion")(
            type("_Router", (_Plain, router_pb2_grpc.RouterServiceServicer), {})
        ),
        "tenth.router.v1.RouterService",
    ),
    (
        compressor_pb2_grpc.add_CompressorServiceServicer_to_server,
        _unary("CompressPrompt", "PreviewCompression", "RecordUsage")(
            type("_Compressor", (_Plain, compressor_pb2_grpc.CompressorServiceServicer), {})
        ),
        "tenth.compressor.v1.CompressorService",
    ),
    (
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        _unary("GenerateText")(_Inference),
        "tenth.inference.v1.InferenceService",
    ),
    (
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server,
        _unary("ReserveFunds", "ReleaseFunds", "SettleReceipts", "GetAdmissionSnapshot")(
            type("_Ledger", (_Plain, ledger_pb2_grpc.LedgerServiceServicer), {})
        ),
        "tenth.ledger.v1.LedgerService",
    ),
    (
        ledger_pb2_grpc.add_LedgerReadServiceServicer_to_server,
        _unary("GetReceipt")(type("_LedgerRead", (_Plain, ledger_pb2_grpc.LedgerReadServiceServicer), {})),
        "tenth.ledger.v1.LedgerReadService",
    ),
    (
        batch_pb2_grpc.add_BatchServiceServicer_to_server,
        _unary("EnqueueCompletion", "GetQueuedCompletion", "DeleteUserItems")(
            type("_Batch", (_Plain, batch_pb2_grpc.BatchServiceServicer), {})
        ),
        "tenth.batch.v1.BatchService",
    ),
]


# Messages that tests need often.


def message(text: str, role: chat_pb2.Role.ValueType = chat_pb2.ROLE_USER) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])


def ask(text: str = "How do I reset my password?", **fields: Any) -> chat_pb2.CompletionRequest:
    """A request with an id."""
    return chat_pb2.CompletionRequest(request_id=str(uuid4()), messages=[message(text)], **fields)


def usage(tokens_in: int = 80, tokens_out: int = 5) -> usage_pb2.Usage:
    return usage_pb2.Usage(input_token_count=tokens_in, output_token_count=tokens_out)


def completion(text: str = "Hello.", **fields: Any) -> chat_pb2.Completion:
    return chat_pb2.Completion(
        message=message(text, chat_pb2.ROLE_ASSISTANT),
        finish_reason=fields.pop("finish_reason", chat_pb2.FINISH_REASON_STOP),
        usage=fields.pop("usage", usage()),
        **fields,
    )


def generated(text: str, **fields: Any) -> inference_pb2.GenerateTextResponse:
    return inference_pb2.GenerateTextResponse(completion=completion(text, **fields))


def began() -> inference_pb2.StreamGenerateTextResponse:
    return inference_pb2.StreamGenerateTextResponse(started=inference_pb2.GenerationStarted(provider_model="m"))


def piece(text: str = "", **fields: Any) -> inference_pb2.StreamGenerateTextResponse:
    return inference_pb2.StreamGenerateTextResponse(delta=chat_pb2.CompletionDelta(text=text, **fields))


def ended(tokens_out: int = 5) -> inference_pb2.StreamGenerateTextResponse:
    return inference_pb2.StreamGenerateTextResponse(
        finished=inference_pb2.GenerationFinished(
            finish_reason=chat_pb2.FINISH_REASON_STOP, usage=usage(tokens_out=tokens_out)
        )
    )


def hit(kind: cache_pb2.HitKind.ValueType = cache_pb2.HIT_KIND_EXACT) -> cache_pb2.LookupCompletionResponse:
    stored = completion("Stored.", model=MINI, tier=chat_pb2.TIER_MEDIUM, baseline_input_token_count=110)
    return cache_pb2.LookupCompletionResponse(
        hit=cache_pb2.CacheHit(completion=stored, kind=kind, similarity=0.97, entry_id="entry-stored")
    )


def follow() -> cache_pb2.LookupCompletionResponse:
    return cache_pb2.LookupCompletionResponse(follow=cache_pb2.Flight(flight_id="flight-1"))


def followed(**event: Any) -> cache_pb2.FollowCompletionResponse:
    return cache_pb2.FollowCompletionResponse(**event)


def spent(reason: str, model: str = MINI, tokens_out: int = 3) -> TenthError:
    """A provider's failure that says what it has cost."""
    item = receipt_pb2.OverheadItem(kind="failed_attempt", model=model, usage=usage(80, tokens_out))
    return TenthError(
        Code.UNAVAILABLE, reason, "the provider failed", details=(receipt_pb2.SpentDetail(attempts=[item]),)
    )


def adds_up(receipt: receipt_pb2.Receipt) -> bool:
    """The identity of the receipt, to the nano-dollar."""
    savings = sum(item.saving_nano_usd for item in receipt.savings)
    return receipt.baseline_nano_usd - savings + receipt.overhead_nano_usd == receipt.actual_nano_usd


def hops(receipt: receipt_pb2.Receipt) -> dict[str, str]:
    """Outcome by hop; the last where one was asked twice."""
    name = receipt_pb2.HopOutcome.Name
    return {hop.name: name(hop.outcome).removeprefix("HOP_OUTCOME_") for hop in receipt.facts.hops}


@dataclass(slots=True)
class Mesh:
    """A running orchestrator among fakes, and its clients."""

    tmp_path: Path
    fakes: Fakes
    addresses: list[str]
    spans: list[Any]
    options: dict[str, Any]
    metrics: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    """The orchestrator's metrics."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    client_stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    clients: dict[str, orchestrator_pb2_grpc.OrchestratorServiceAsyncStub] = field(default_factory=dict)
    outside: orchestrator_pb2_grpc.CompletionHalvesServiceAsyncStub = field(init=False)
    """The halves as an outside caller reaches them, who may call everything."""
    halves: orchestrator_pb2_grpc.CompletionHalvesServiceAsyncStub = field(init=False)
    """The halves as the batch service calls them."""

    @property
    def client(self) -> orchestrator_pb2_grpc.OrchestratorServiceAsyncStub:
        """The stub of a caller that may name users."""
        return self.clients["app"]

    async def start(self) -> None:
        """Start the orchestrator (again: with the same durable files)."""
        data = self.tmp_path / "orchestrator"
        mesh = MeshSettings(
            data_dir=data,
            callers_file=self.tmp_path / "callers.yaml",
            identity_key_file=self.tmp_path / "identity.key",
            unready_seconds=0,
            drain_seconds=0.3,
        )
        one = self.addresses[0]
        settings = OrchestratorSettings(
            **{
                "cache_address": ",".join(self.addresses),
                "router_address": one,
                "compressor_address": one,
                "inference_address": one,
                "ledger_address": one,
                "settle_interval_seconds": 0.01,
                "snapshot_interval_seconds": 0.02,
                # Generous, so that only scripted delays are late on a busy machine.
                "lookup_cap_seconds": 2,
                "select_cap_seconds": 2,
                "compress_cap_seconds": 2,
                "reserve_cap_seconds": 2,
                "background_cap_seconds": 2,
                **self.options,
                **{name: one for name, value in self.options.items() if value is AMONG_FAKES},
            }
        )
        exporter, self.metrics = InMemorySpanExporter(), InMemoryMetricReader()
        telemetry = start_telemetry(
            "orchestrator", MeshSettings(), SimpleSpanProcessor(exporter), metric_readers=[self.metrics]
        )
        self.spans.append(exporter)
        self.stack.callback(telemetry.close)
        server = await self.stack.enter_async_context(assemble(mesh, settings, telemetry))
        port = await server.start()
        self.stack.push_async_callback(server.drain)
        await until(lambda: (data / "models.bin").exists() and (data / "admission.bin").exists())
        client_telemetry, exporter = memory_telemetry("client")
        self.spans.append(exporter)
        for name in KEYS:
            channel = connect(f"127.0.0.1:{port}", MeshSettings(), client_telemetry, api_key=name)
            await self.client_stack.enter_async_context(channel)
            self.clients[name] = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            if name == "app":
                self.outside = orchestrator_pb2_grpc.CompletionHalvesServiceStub(channel)
        service = connect(f"127.0.0.1:{port}", MeshSettings(), client_telemetry, Signer(KEY, "batch"))
        await self.client_stack.enter_async_context(service)
        self.halves = orchestrator_pb2_grpc.CompletionHalvesServiceStub(service)

    async def stop(self) -> None:
        """Stop the orchestrator as SIGTERM does."""
        await self.stack.aclose()
        await self.client_stack.aclose()

    async def generate(self, request: chat_pb2.CompletionRequest, key: str = "app", timeout: float = 20) -> Any:  # noqa: ASYNC109  (gRPC's own)
        """A whole answer."""
        return await self.clients[key].GenerateCompletion(
            orchestrator_pb2.GenerateCompletionRequest(request=request), timeout=timeout
        )

    def stream(self, request: chat_pb2.CompletionRequest, timeout: float = 20) -> Any:
        """The events of a streamed answer."""
        return self.client.StreamGenerateCompletion(
            orchestrator_pb2.StreamGenerateCompletionRequest(request=request), timeout=timeout
        )

    async def events(self, request: chat_pb2.CompletionRequest) -> list[Any]:
        """All events of a streamed answer."""
        return [event async for event in self.stream(request)]

    async def prepare(
        self, *requests: chat_pb2.CompletionRequest, identity: Identity = BATCH, **options: Any
    ) -> list[orchestrator_pb2.PrepareOutcome]:
        """The first half of some requests, as the batch service asks for it."""
        set_identity(identity)
        call = orchestrator_pb2.PrepareCompletionsRequest()
        for request in requests:
            item = call.items.add(**{"batch_prices": True, **options}, request=request)
            item.reservation_ttl.FromSeconds(86_400)
        return list((await self.halves.PrepareCompletions(call, timeout=20)).outcomes)

    async def finish(
        self, *items: orchestrator_pb2.CompletionToFinish, identity: Identity = BATCH
    ) -> list[orchestrator_pb2.FinishOutcome]:
        """The second half of some requests."""
        set_identity(identity)
        call = orchestrator_pb2.FinishCompletionsRequest(items=items)
        return list((await self.halves.FinishCompletions(call, timeout=20)).outcomes)

    async def settled(self, request_id: str) -> receipt_pb2.Receipt:
        """The receipt once the ledger has it."""
        await until(lambda: bool(self.fakes.receipts(request_id)))
        return self.fakes.receipts(request_id)[-1]

    async def switched(self, *layers: str) -> None:
        """Turn layers off and wait until the orchestrator knows."""
        self.fakes.change_policy(*layers)
        seen = self.fakes.count("GetAdmissionSnapshot")
        await until(lambda: self.fakes.count("GetAdmissionSnapshot") > seen + 1)

    def finished_spans(self) -> list[ReadableSpan]:
        """Every finished span of the client, the orchestrator and the fakes."""
        return [span for exporter in self.spans for span in exporter.get_finished_spans()]


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that happens in the background."""

    async def ask() -> bool:
        return condition()

    await eventually(ask, bool, seconds)


async def eventually(ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], seconds: float = 10) -> Any:
    """Ask again until the answer is good."""
    async with asyncio.timeout(seconds):
        while True:
            answer = await ask()
            if good(answer):
                return answer
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running_mesh(tmp_path: Path, cache_replicas: int = 1, **options: Any) -> AsyncIterator[Mesh]:
    """The fakes and an orchestrator with these settings."""
    (tmp_path / "identity.key").write_bytes(KEY)
    callers = [
        {
            "name": name,
            "tenant_id": tenant,
            "key_sha256": hashlib.sha256(name.encode()).hexdigest(),
            "may_assert_user": name != "plain",
            "may_call": ["*"],
        }
        for name, tenant in KEYS.items()
    ]
    (tmp_path / "callers.yaml").write_text(
        yaml.safe_dump({"callers": callers, "services": {"orchestrator": ["*"], "batch": ["*"]}})
    )
    fakes = Fakes()
    async with AsyncExitStack() as stack:
        addresses, spans = [], []
        for replica in range(cache_replicas):
            telemetry, exporter = memory_telemetry("fakes")
            spans.append(exporter)
            stack.callback(telemetry.close)
            settings = MeshSettings(unready_seconds=0, drain_seconds=0.1, reflection=False)
            server = MeshServer(settings, telemetry, Authenticator(tmp_path / "callers.yaml", KEY), {})
            for register, kind, name in _SERVICES:
                server.add(register, kind(fakes, replica), name)
            addresses.append(f"127.0.0.1:{await server.start()}")
            stack.push_async_callback(server.drain)
        mesh = Mesh(tmp_path, fakes, addresses, spans, options)
        await mesh.start()
        try:
            yield mesh
        finally:
            await mesh.stop()
