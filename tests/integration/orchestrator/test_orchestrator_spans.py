"""The span tree of a request: which call stands under which, for hit, miss, stream and failure."""

from __future__ import annotations

import pytest

from mesh.errors import TenthError
from tests.integration.orchestrator.orchestrator_fakes import MINI, Mesh, ask, began, hit, piece, spent, until

ROOT = "tenth.orchestrator.v1.OrchestratorService/"
LOOKUP, STORE = "tenth.cache.v1.CacheService/LookupCompletion", "tenth.cache.v1.CacheService/StoreCompletion"
RELEASE = "tenth.cache.v1.CacheService/ReleaseLease"
ROUTE, RECORD = (f"tenth.router.v1.RouterService/{name}" for name in ("SelectModel", "RecordCompletion"))
USAGE = "tenth.compressor.v1.CompressorService/RecordUsage"
COMPRESS = "tenth.compressor.v1.CompressorService/CompressPrompt"
RESERVE = "tenth.ledger.v1.LedgerService/ReserveFunds"
GENERATE, STREAM = (f"tenth.inference.v1.InferenceService/{name}" for name in ("GenerateText", "StreamGenerateText"))


def edges(mesh: Mesh, trace_id: str) -> set[tuple[str, str, str]]:
    """(parent, child, the child's service) of one trace."""
    spans = [span for span in mesh.finished_spans() if f"{span.context.trace_id:032x}" == trace_id]
    names = {span.context.span_id: span.name for span in spans}
    return {
        (
            names.get(span.parent.span_id, "unfinished") if span.parent else "",
            span.name,
            str(span.resource.attributes["service.name"]),
        )
        for span in spans
    }


def expected(root: str, *methods: str) -> set[tuple[str, str, str]]:
    tree = {("", root, "client"), (root, root, "orchestrator")}
    for method in methods:
        tree |= {(root, method, "orchestrator"), (method, method, "fakes")}
    return tree


async def test_a_miss(mesh: Mesh) -> None:
    reply = await mesh.generate(ask())
    trace_id = reply.receipt.facts.trace_id
    tree = expected(ROOT + "GenerateCompletion", LOOKUP, ROUTE, COMPRESS, RESERVE, GENERATE, STORE, RECORD, USAGE)
    await until(lambda: edges(mesh, trace_id) >= tree)
    assert edges(mesh, trace_id) == tree
    [served] = [
        span
        for span in mesh.finished_spans()
        if span.name == ROOT + "GenerateCompletion" and "tenth.request_id" in (span.attributes or {})
    ]
    attributes = dict(served.attributes or {})
    assert attributes["tenth.request_id"] == reply.request_id
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.response.model"] == MINI
    assert attributes["gen_ai.usage.input_tokens"] == 80
    assert attributes["gen_ai.usage.output_tokens"] == 5
    assert attributes["tenth.receipt.actual_nano_usd"] == reply.receipt.actual_nano_usd
    assert attributes["tenth.hop.router"] == "ok: mini: scripted"
    savings = sum(int(str(value)) for name, value in attributes.items() if name.startswith("tenth.receipt.saving."))
    assert (
        int(str(attributes["tenth.receipt.baseline_nano_usd"]))
        - savings
        + int(str(attributes["tenth.receipt.overhead_nano_usd"]))
        == attributes["tenth.receipt.actual_nano_usd"]
    )
    # Nothing of the prompt or the answer is recorded.
    assert "password" not in str(attributes)
    assert "Hello" not in str(attributes)


async def test_a_hit(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", hit())
    reply = await mesh.generate(ask())
    tree = expected(ROOT + "GenerateCompletion", LOOKUP)
    await until(lambda: edges(mesh, reply.receipt.facts.trace_id) == tree)


async def test_a_stream(mesh: Mesh) -> None:
    events = await mesh.events(ask())
    tree = expected(ROOT + "StreamGenerateCompletion", LOOKUP, ROUTE, COMPRESS, RESERVE, STREAM, STORE, RECORD, USAGE)
    await until(lambda: edges(mesh, events[0].started.trace_id) == tree)


@pytest.mark.parametrize("fails", ["before", "after the first piece"])
async def test_a_failure(mesh: Mesh, fails: str) -> None:
    pieces = [piece("Hel")] if fails != "before" else []
    mesh.fakes.on("StreamGenerateText", [began(), *pieces, spent("PROVIDER_ERROR")])
    request = ask()
    with pytest.raises(TenthError):
        await mesh.events(request)
    receipt = await mesh.settled(request.request_id)
    methods = [LOOKUP, ROUTE, COMPRESS, RESERVE, STREAM, RELEASE, RECORD]
    if fails == "before":
        methods.append("tenth.ledger.v1.LedgerService/ReleaseFunds")
    tree = expected(ROOT + "StreamGenerateCompletion", *methods)
    await until(lambda: edges(mesh, receipt.facts.trace_id) == tree)
    [served] = [
        span
        for span in mesh.finished_spans()
        if span.name == ROOT + "StreamGenerateCompletion" and "tenth.request_id" in (span.attributes or {})
    ]
    assert served.status.description == "PROVIDER_ERROR"


async def test_settling_is_no_part_of_a_request(mesh: Mesh) -> None:
    reply = await mesh.generate(ask())
    await mesh.settled(reply.request_id)
    trace = edges(mesh, reply.receipt.facts.trace_id)
    assert not any("SettleReceipts" in name or "GetAdmissionSnapshot" in name for _, name, _ in trace)
