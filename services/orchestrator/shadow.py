"""The shadow check: a sample of answers to compressed prompts is given again without compression, and compared.

    consider -> in the background: reserve -> the same model, whole prompt -> reserve -> judge, both orders -> receipt

The caller's answer has gone by then, and nothing here can change it. A check is a receipt of its own, which says that
no answer was delivered: all it spent is overhead, of the kinds "shadow" and "judge", and its tags say the verdict. So
the outbox delivers it, a lost one is made from inference's records, and it counts in budgets as any money does. What
it needs and cannot have (the ledger, funds, a price, a place among those that run) drops it, counted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.metrics import Meter
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from mesh.receipt import price_of
from mesh.status import detail
from mesh.wire import build_receipt
from services.orchestrator import policy, shadow_policy
from services.orchestrator.background import Background
from services.orchestrator.call import Call, Generated, Prompt, Route
from services.orchestrator.errors import Reason
from services.orchestrator.outbox import Outbox
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.shadow_policy import Compared, Verdict

VERDICT_TAG, MODE_TAG, BY_TAG = "tenth.shadow", "tenth.shadow_mode", "tenth.shadow_by"
"""Tags of a check's receipt: the verdict; the compression mode; the strategies that can have cost meaning."""
OF_TAG, WHY_TAG = "tenth.shadow_of", "tenth.shadow_why"
"""The request that was checked; why the check is undecided, or no judge was asked."""
_SECOND_ATTEMPT, _JUDGE_ATTEMPT = 601, 701
"""First numbers of a check's attempts, after the base of the request's own."""
_MODES = {
    chat_pb2.COMPRESSION_MODE_BALANCED: "balanced",
    chat_pb2.COMPRESSION_MODE_AGGRESSIVE: "aggressive",
}


@dataclass(slots=True)
class _Check:
    """One check on its way: what is checked, what is held, what was spent."""

    call: Call
    route: Route
    prompt: Prompt
    given: chat_pb2.Completion
    by: tuple[str, ...]
    request_id: str
    reservation_id: str = ""
    attempts_unknown: bool = False
    overheads: list[receipt_pb2.OverheadItem] = field(default_factory=list)

    def tags(self, verdict: Verdict, why: str = "") -> dict[str, str]:
        """The request's own labels, for budgets and reports by them, and those of the check."""
        mode = _MODES.get(self.call.request.policy.compression_mode, "safe")
        own = {VERDICT_TAG: verdict.value, MODE_TAG: mode, BY_TAG: ",".join(self.by)}
        return {
            **self.call.request.tags,
            **own,
            OF_TAG: self.call.request.request_id,
            **({WHY_TAG: why} if why else {}),
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 by which a check of the same request is the same one."""
        return hashlib.sha256(b"tenth.shadow\0" + self.call.digest).digest()


class Shadow:
    """Checks a share of the answers whose prompt lost something that can carry meaning."""

    def __init__(
        self,
        inference: inference_pb2_grpc.InferenceServiceAsyncStub,
        ledger: ledger_pb2_grpc.LedgerServiceAsyncStub,
        outbox: Outbox,
        background: Background,
        settings: OrchestratorSettings,
        meter: Meter,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._inference = inference
        self._ledger = ledger
        self._outbox = outbox
        self._background = background
        self._settings = settings
        self._now = now
        self._running = 0
        self._spend = shadow_policy.SpendShare(settings.shadow_spend_share)
        self._checks = meter.create_counter("tenth.shadow.checks", unit="{check}", description="Shadow checks")

    def consider(
        self, call: Call, route: Route, prompt: Prompt, generated: Generated, receipt: receipt_pb2.Receipt
    ) -> None:
        """Begin a check of an answer that was just made, if it is drawn. Never waits."""
        if not self._settings.shadow_share:
            return
        self._spend.answered(receipt.actual_nano_usd)
        by = shadow_policy.lossy(prompt.shortened_by)
        tenant_id, request_id = call.identity.tenant_id, call.request.request_id
        if not by or not _comparable(call, generated.completion):
            return
        if not shadow_policy.drawn(tenant_id, request_id, self._settings.shadow_share):
            return
        busy = self._running >= self._settings.shadow_concurrency
        if busy or not self._spend.allows():
            self._count("dropped", "busy" if busy else "spend_share")
            return
        self._running += 1
        # The caller's own message: what is done to it later must not reach the comparison.
        given = chat_pb2.Completion()
        given.CopyFrom(generated.completion)
        check = _Check(call, route, prompt, given, by, shadow_policy.check_id(tenant_id, request_id))
        self._background.spawn("shadow check", self._run(check))

    async def _run(self, check: _Check) -> None:
        verdict, why = Verdict.UNDECIDED, "interrupted"
        try:
            price_of(self._settings.shadow_judge_model, check.call.prices)
            sent = policy.reserve_input_tokens(check.prompt.original_tokens, check.prompt.estimated)
            await self._reserve(check, check.route.model, sent, check.call.request.sampling.max_output_tokens)
            try:
                verdict, why = await self._compare(check)
            except TenthError as error:
                why = error.reason
            finally:
                self._settle(check, verdict, why)
                self._count(verdict.value, why)
        except TenthError as error:
            self._count("dropped", error.reason)
            raise
        finally:
            self._running -= 1

    async def _compare(self, check: _Check) -> tuple[Verdict, str]:
        whole = await self._attempt(check, "shadow", self._second(check))
        if not _ended(whole):
            return Verdict.UNDECIDED, "second_answer_cut"
        compared = Compared(*_asked(check.call.request), _text(check.given), _text(whole))
        if shadow_policy.identical(compared.given, compared.whole):
            return Verdict.SAME, shadow_policy.IDENTICAL
        prompts = shadow_policy.judge_prompts(compared)
        texts = [each.system + each.user for each in prompts]
        tokens = sum(policy.estimate_tokens(len(text), _non_ascii(text)) for text in texts)
        output = self._settings.shadow_judge_max_output_tokens
        await self._reserve(check, self._settings.shadow_judge_model, tokens, 2 * output)
        letters = []
        for number, prompt in enumerate(prompts):
            request = self._judgement(check, number, prompt, tokens // 2)
            letters.append(shadow_policy.letter(_text(await self._attempt(check, "judge", request))))
            if not letters[-1]:
                return Verdict.UNDECIDED, shadow_policy.UNREADABLE  # The other order cannot decide it any more.
        return shadow_policy.verdict(*letters)

    async def _reserve(self, check: _Check, model: str, input_tokens: int, output_tokens: int) -> None:
        """Hold the worst case of what comes next, beside what was spent. Raises BUDGET_EXCEEDED, or the call's error.

        Always asked, under a hard budget or not: without the ledger there is no check.
        """
        call = check.call
        request = ledger_pb2.ReserveFundsRequest(
            request_id=check.request_id,
            model=model,
            input_token_count=input_tokens,
            max_output_token_count=output_tokens,
            price_book_version=call.price_book_version,
            user_id=call.identity.user_id,
            project_id=call.identity.project_id,
            payload_digest=check.digest.hex(),
            tags=check.tags(Verdict.UNDECIDED),
            tier=check.route.tier,
        )
        request.create_time.FromNanoseconds(int(call.created * 1e9))
        request.ttl.FromMilliseconds(int(self._settings.reservation_ttl_seconds * 1000))
        funds = await self._ledger.ReserveFunds(request, timeout=self._settings.background_cap_seconds)
        if funds.decision != ledger_pb2.RESERVE_DECISION_OK:
            raise TenthError(
                Code.RESOURCE_EXHAUSTED, Reason.BUDGET_EXCEEDED, f"budget {funds.budget_name!r} holds no shadow check"
            )
        check.reservation_id = funds.reservation_id

    async def _attempt(
        self, check: _Check, kind: str, request: inference_pb2.GenerateTextRequest
    ) -> chat_pb2.Completion:
        """Ask a model, and note what it used, whichever way it ends."""
        spent = receipt_pb2.OverheadItem(kind=kind, model=request.model, attempt=request.attempt)
        known = False
        try:
            reply = await self._inference.GenerateText(request, timeout=self._settings.shadow_cap_seconds)
            spent.usage.CopyFrom(reply.completion.usage)
            spent.quantized = reply.quantized
            known = True
            return reply.completion
        except TenthError as error:
            failed = detail(error, receipt_pb2.SpentDetail)
            if isinstance(failed, receipt_pb2.SpentDetail) and failed.attempts:
                spent.usage.CopyFrom(failed.attempts[0].usage)
                spent.quantized = failed.attempts[0].quantized
                known = True
            raise
        finally:
            if known:
                check.overheads.append(spent)
            else:
                check.attempts_unknown = True  # The ledger asks inference's records.

    def _second(self, check: _Check) -> inference_pb2.GenerateTextRequest:
        """The request as its caller sent it: every message, passage and tool, and the caller's own limit."""
        asked = check.call.request
        request = inference_pb2.GenerateTextRequest(
            messages=asked.messages,
            retrieved_chunks=asked.retrieved_chunks,
            tools=asked.tools,
            tool_choice=asked.tool_choice,
            response_format=asked.response_format,
            sampling=asked.sampling,
            purpose=inference_pb2.PURPOSE_SHADOW,
        )
        request.sampling.ClearField("top_logprobs_count")
        return self._addressed(check, request, check.route.model, _SECOND_ATTEMPT, check.prompt.original_tokens)

    def _judgement(
        self, check: _Check, number: int, prompt: shadow_policy.JudgePrompt, tokens: int
    ) -> inference_pb2.GenerateTextRequest:
        said = ((chat_pb2.ROLE_SYSTEM, prompt.system), (chat_pb2.ROLE_USER, prompt.user))
        request = inference_pb2.GenerateTextRequest(
            messages=[chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)]) for role, text in said],
            sampling=chat_pb2.SamplingParameters(
                temperature=0, max_output_tokens=self._settings.shadow_judge_max_output_tokens
            ),
            purpose=inference_pb2.PURPOSE_JUDGE,
        )
        return self._addressed(check, request, self._settings.shadow_judge_model, _JUDGE_ATTEMPT + number, tokens)

    def _addressed(
        self, check: _Check, request: inference_pb2.GenerateTextRequest, model: str, number: int, tokens: int
    ) -> inference_pb2.GenerateTextRequest:
        request.request_id = check.request_id
        request.attempt = check.call.attempt_base + number
        request.model = model
        request.price_book_version = check.call.price_book_version
        request.reservation_id = check.reservation_id
        request.estimated_input_token_count = tokens
        request.project_id = check.call.identity.project_id
        return request

    def _settle(self, check: _Check, verdict: Verdict, why: str) -> None:
        """Put the check's receipt on its way to the ledger."""
        call = check.call
        facts = receipt_pb2.ReceiptFacts(
            request_id=check.request_id,
            tenant_id=call.identity.tenant_id,
            user_id=call.identity.user_id,
            project_id=call.identity.project_id,
            tags=check.tags(verdict, why),
            price_book_version=call.price_book_version,
            baseline_model=call.tenant.baseline_model,
            model=check.route.model,
            tier=check.route.tier,
            failed=True,
            overheads=check.overheads,
            reservation_id=check.reservation_id,
            trace_id=call.trace_id,
            payload_digest=check.digest.hex(),
            attempts_unknown=check.attempts_unknown,
        )
        facts.create_time.FromNanoseconds(int(call.created * 1e9))
        facts.end_time.FromNanoseconds(int(self._now() * 1e9))
        receipt = build_receipt(facts, call.prices, receipt_pb2.RECEIPT_STATE_PENDING)
        self._spend.checked(receipt.actual_nano_usd)
        self._outbox.append(check.digest, receipt, None, error="shadow check: no answer was delivered")

    def _count(self, outcome: str, reason: str) -> None:
        self._checks.add(1, {"tenth.shadow.outcome": outcome, "tenth.shadow.reason": reason})


def _comparable(call: Call, completion: chat_pb2.Completion) -> bool:
    """True for an answer that ended by itself, of a request that every layer worked on and no budget pressed down.

    A judge sees no pictures, and so could not tell which of two answers about one is right.
    """
    pictures = any(part.HasField("image") for message in call.request.messages for part in message.parts)
    layered = not call.control and not call.downgraded and not call.disabled("compression")
    return layered and not pictures and _ended(completion)


def _ended(completion: chat_pb2.Completion) -> bool:
    return completion.finish_reason in (chat_pb2.FINISH_REASON_STOP, chat_pb2.FINISH_REASON_TOOL_CALLS)


def _text(completion: chat_pb2.Completion) -> str:
    """An answer as the judge reads it: its text, and its tool calls in words."""
    return _message_text(completion.message)


def _message_text(message: chat_pb2.ChatMessage) -> str:
    calls = [f"[{call.name} {call.arguments_json}]" for call in message.tool_calls]
    return "\n".join(filter(None, ("".join(part.text for part in message.parts), *calls)))


def _asked(request: chat_pb2.CompletionRequest) -> tuple[str, str]:
    """The question (the last user message) and the material: passages and the other messages, oldest first."""
    users = [at for at, message in enumerate(request.messages) if message.role == chat_pb2.ROLE_USER]
    last = users[-1] if users else -1
    question = _message_text(request.messages[last])
    last %= len(request.messages)
    said = [
        f"{chat_pb2.Role.Name(message.role).removeprefix('ROLE_').lower()}: {_message_text(message)}"
        for at, message in enumerate(request.messages)
        if at != last
    ]
    return question, "\n\n".join([*said, *(chunk.text for chunk in request.retrieved_chunks)])


def _non_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))
