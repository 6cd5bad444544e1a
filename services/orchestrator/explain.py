"""The dry run of a request: what each hop would do, and at what price. Spends nothing and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.receipt import price_of, worst_case
from mesh.wire import build_receipt
from services.orchestrator import policy
from services.orchestrator.call import DISABLED, SKIPPED, Call, has_batch_price

_CAP_SECONDS = 5.0


class Explain:
    """Asks each layer for its dry run."""

    def __init__(
        self,
        cache: cache_pb2_grpc.CacheServiceAsyncStub,
        router: router_pb2_grpc.RouterServiceAsyncStub,
        compressor: compressor_pb2_grpc.CompressorServiceAsyncStub,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._router = router
        self._compressor = compressor
        self._now = now

    async def explain(self, call: Call, batch: bool = False) -> orchestrator_pb2.ExplainRequestResponse:
        """The explanation of one admitted call. Raises what a hop raises: a dry run does not degrade.

        ``batch``: it would be handed over to the batch service, and go at batch prices where there are such.
        """
        call.control = None  # The question is what the layers would do.
        reply = orchestrator_pb2.ExplainRequestResponse()
        hit = await self._look_up(call, reply)
        route = await self._choose(call, reply)
        short = await self._shorten(call, route, reply)
        output = min(call.request.sampling.max_output_tokens, policy.EXPECTED_OUTPUT_TOKENS)
        completion = chat_pb2.Completion(model=route.model, tier=route.tier)
        completion.usage.output_token_count = output
        if hit:
            facts = call.hit_facts(self._now(), completion, "expected", short.baseline_input_token_count)
        else:
            facts = call.facts(self._now())
            facts.model, facts.tier = route.model, route.tier
            facts.original_input_token_count = short.original_input_token_count
            facts.baseline_input_token_count = short.baseline_input_token_count
            facts.usage.CopyFrom(
                usage_pb2.Usage(
                    input_token_count=short.compressed_input_token_count, output_token_count=output, estimated=True
                )
            )
            price = price_of(route.model, call.prices)
            facts.batch = batch and has_batch_price(price)
            input_tokens = policy.reserve_input_tokens(short.compressed_input_token_count, short.estimated)
            reply.worst_case_nano_usd = worst_case(
                price, input_tokens, call.request.sampling.max_output_tokens, batch=facts.batch
            )
        reply.hops.extend(call.hops)
        reply.expected_receipt.CopyFrom(build_receipt(facts, call.prices, receipt_pb2.RECEIPT_STATE_UNSPECIFIED))
        return reply

    async def _look_up(self, call: Call, reply: orchestrator_pb2.ExplainRequestResponse) -> bool:
        if call.disabled("cache"):
            call.skip("cache", DISABLED, "kill switch")
            return False
        if call.request.policy.cache_mode == chat_pb2.CACHE_MODE_OFF:
            call.skip("cache", SKIPPED, "cache_mode_off")
            return False
        with call.hop("cache") as hop:
            request = cache_pb2.InspectLookupRequest(request=call.asked)
            reply.cache.CopyFrom(await self._cache.InspectLookup(request, timeout=_CAP_SECONDS))
            hop.reason = f"{reply.cache.outcome}: {reply.cache.reason}"
        return reply.cache.outcome == "hit"

    async def _choose(
        self, call: Call, reply: orchestrator_pb2.ExplainRequestResponse
    ) -> router_pb2.SelectModelResponse:
        with call.hop("router") as hop:
            request = router_pb2.SelectModelRequest(request=call.request, dry_run=True)
            if call.disabled("routing"):
                request.request.policy.model = call.request.policy.model or call.tenant.baseline_model
                hop.outcome = DISABLED
            reply.route.CopyFrom(await self._router.SelectModel(request, timeout=_CAP_SECONDS))
            hop.reason = f"{reply.route.model}: {reply.route.reason}"
        return reply.route

    async def _shorten(
        self, call: Call, route: router_pb2.SelectModelResponse, reply: orchestrator_pb2.ExplainRequestResponse
    ) -> compressor_pb2.CompressPromptResponse:
        with call.hop("compressor") as hop:
            request = compressor_pb2.CompressPromptRequest(
                request=call.request, model=route.model, baseline_model=call.tenant.baseline_model
            )
            if call.disabled("compression"):
                request.request.policy.compression_mode = chat_pb2.COMPRESSION_MODE_OFF
                hop.outcome = DISABLED
            preview = compressor_pb2.PreviewCompressionRequest(compression=request)
            short = (await self._compressor.PreviewCompression(preview, timeout=_CAP_SECONDS)).compression
            removed = short.original_input_token_count - short.compressed_input_token_count
            hop.reason = f"-{removed} of {short.original_input_token_count} tokens"
            reply.compression.extend(short.strategies)
        return short
