"""Answers in OpenAI's chat-completions format, and lines of its batch output format.

A line is what OpenAI's output file has (``id``, ``custom_id``, ``response``, ``error``), and under the key ``tenth``
what the answer cost: amounts are nano-USD, as whole numbers.
"""

from __future__ import annotations

from typing import Any

from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

FINISH_REASONS = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
LAYERS = {
    receipt_pb2.LAYER_CACHE: "cache",
    receipt_pb2.LAYER_ROUTING: "routing",
    receipt_pb2.LAYER_COMPRESSION: "compression",
    receipt_pb2.LAYER_PROMPT_CACHE: "prompt_cache",
    receipt_pb2.LAYER_BATCH: "batch",
    receipt_pb2.LAYER_QUANTIZATION: "quantization",
}


def batch_line(result: batch_pb2.StreamBatchResultsResponse) -> dict[str, Any]:
    """One result as a line of OpenAI's batch output file."""
    receipt = result.receipt
    request_id = receipt.facts.request_id
    line: dict[str, Any] = {
        "id": f"batch_req_{request_id.replace('-', '') or result.custom_id}",
        "custom_id": result.custom_id,
        "response": None,
        "error": None,
    }
    if result.error_reason:
        line["error"] = {"code": result.error_reason, "message": result.error_message}
    else:
        body = completion_body(result.completion, request_id, receipt.facts.end_time.ToSeconds())
        line["response"] = {"status_code": 200, "request_id": request_id, "body": body}
    if result.HasField("receipt"):
        line["tenth"] = amounts(receipt)
    return line


def completion_body(completion: chat_pb2.Completion, request_id: str, created_seconds: int) -> dict[str, Any]:
    """A ``chat.completion``. ``created_seconds`` is a Unix time."""
    choice = {
        "index": 0,
        "message": _message(completion.message),
        "logprobs": _logprobs(completion),
        "finish_reason": FINISH_REASONS.get(completion.finish_reason, "stop"),
    }
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": created_seconds,
        "model": completion.model,
        "choices": [choice],
        "usage": usage(completion.usage),
    }


def usage(used: usage_pb2.Usage) -> dict[str, Any]:
    """Tokens, as OpenAI counts them: the prompt with its cached part, the completion with its reasoning."""
    return {
        "prompt_tokens": used.input_token_count,
        "completion_tokens": used.output_token_count,
        "total_tokens": used.input_token_count + used.output_token_count,
        "prompt_tokens_details": {"cached_tokens": used.cached_input_token_count},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_output_token_count},
    }


def amounts(receipt: receipt_pb2.Receipt) -> dict[str, Any]:
    """A receipt's sums: baseline less savings plus overhead is what was paid."""
    return {
        "request_id": receipt.facts.request_id,
        "baseline_model": receipt.facts.baseline_model,
        "cache_hit": receipt.facts.cache_hit,
        "batch": receipt.facts.batch,
        "baseline_nano_usd": receipt.baseline_nano_usd,
        "savings_nano_usd": {
            LAYERS.get(saving.layer, str(saving.layer)): saving.saving_nano_usd for saving in receipt.savings
        },
        "overhead_nano_usd": receipt.overhead_nano_usd,
        "actual_nano_usd": receipt.actual_nano_usd,
    }


def _message(message: chat_pb2.ChatMessage) -> dict[str, Any]:
    text = "".join(part.text for part in message.parts)
    # Calls without a word have null, not an empty text.
    body: dict[str, Any] = {"role": "assistant", "content": text if text or not message.tool_calls else None}
    body["refusal"] = None
    if message.reasoning:
        body["reasoning_content"] = message.reasoning
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    return body


def _logprobs(completion: chat_pb2.Completion) -> dict[str, Any] | None:
    if not completion.logprobs:
        return None
    return {
        "content": [
            {
                "token": token.token,
                "logprob": token.logprob,
                "bytes": list(token.token.encode("utf-8")),
                "top_logprobs": [
                    {"token": other.token, "logprob": other.logprob, "bytes": list(other.token.encode("utf-8"))}
                    for other in token.alternatives
                ],
            }
            for token in completion.logprobs
        ],
        "refusal": None,
    }
