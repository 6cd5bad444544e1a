"""Anthropic's Message Batches for the sandbox, kept in memory. Source: Anthropic's API reference."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.batch_runs import BatchControl, BatchItem, BatchRun, Outcome, Responder
from sandbox.messages import HEADERS, error
from sandbox.openai_batches import dropped

MOST_ITEMS = 100_000
MOST_BYTES = 256 * 1024 * 1024
_CUSTOM_ID = re.compile("[a-zA-Z0-9_-]{1,64}")
_FAILURE = {"type": "error", "error": {"type": "api_error", "message": "sandbox failure 500"}}


class MessageBatchEndpoints:
    """``/v1/messages/batches``."""

    def __init__(self, control: BatchControl, responder: Responder) -> None:
        """``responder`` answers the items as the Messages endpoint would."""
        self._control = control
        self._responder = responder
        self.batches: dict[str, BatchRun] = {}

    def routes(self) -> list[Route]:
        """What is served."""
        base = "/v1/messages/batches"
        return [
            Route(base, self.create, methods=["POST"]),
            Route(base, self.list_batches, methods=["GET"]),
            Route(f"{base}/{{id}}", self.batch, methods=["GET"]),
            Route(f"{base}/{{id}}", self.delete, methods=["DELETE"]),
            Route(f"{base}/{{id}}/results", self.results, methods=["GET"]),
            Route(f"{base}/{{id}}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """A batch of the requests in the body."""
        raw = await request.body()
        if len(raw) > MOST_BYTES:
            return error(413, f"a batch has at most {MOST_BYTES} bytes")
        try:
            items = [BatchItem(each["custom_id"], each["params"]) for each in json.loads(raw)["requests"]]
            wrong = next((item for item in items if not _CUSTOM_ID.fullmatch(item.custom_id)), None)
        except (ValueError, KeyError, TypeError):
            return error(400, "the request is no batch of messages")
        if not 0 < len(items) <= MOST_ITEMS:
            return error(400, f"requests: 1 to {MOST_ITEMS} are taken")
        if wrong is not None or len({item.custom_id for item in items}) < len(items):
            return error(400, "requests: a custom_id is unique and has 1 to 64 characters of a-z, A-Z, 0-9, _ and -")
        if self._control.take("refuse_creates"):
            return error(429, "too many batches are waiting", {"retry-after": "0"})
        if self._control.plan.fail_validation:
            return error(400, "requests.0.params.model: the model takes no batches")
        name = f"msgbatch_sandbox{uuid.uuid4().hex[:16]}"
        self.batches[name] = BatchRun(items, self._control, self._responder, _FAILURE)
        if self._control.take("drop_creates"):
            return dropped()
        return JSONResponse(self._shown(name, request), headers=HEADERS)

    async def list_batches(self, request: Request) -> Response:
        """Newest first."""
        limit, after = int(request.query_params.get("limit", 20)), request.query_params.get("after_id")
        names = list(reversed(self.batches))
        start = names.index(after) + 1 if after in names else 0
        page = names[start : start + limit]
        body = {
            "data": [self._shown(name, request) for name in page],
            "has_more": start + limit < len(names),
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }
        return JSONResponse(body, headers=HEADERS)

    async def batch(self, request: Request) -> Response:
        """How far a batch is."""
        name = request.path_params["id"]
        return JSONResponse(self._shown(name, request), headers=HEADERS) if name in self.batches else _missing()

    async def results(self, request: Request) -> Response:
        """A line for each request, once the batch has ended."""
        run = self.batches.get(request.path_params["id"])
        if run is None:
            return _missing()
        if run.state != "ended":
            return error(400, "the batch has not ended: it has no results yet")
        return Response(run.lines(_line, lambda _: True), media_type="application/x-jsonl", headers=HEADERS)

    async def cancel(self, request: Request) -> Response:
        """Stop it."""
        name = request.path_params["id"]
        run = self.batches.get(name)
        if run is None:
            return _missing()
        run.cancel()
        return JSONResponse(self._shown(name, request), headers=HEADERS)

    async def delete(self, request: Request) -> Response:
        """Forget one that has ended."""
        name = request.path_params["id"]
        run = self.batches.get(name)
        if run is None:
            return _missing()
        if run.state != "ended":
            return error(400, "the batch has not ended: cancel it first")
        del self.batches[name]
        return JSONResponse({"id": name, "type": "message_batch_deleted"}, headers=HEADERS)

    def _shown(self, name: str, request: Request) -> dict[str, Any]:
        run = self.batches[name]
        ended = run.state == "ended"
        good, bad = run.count("answered", good=True), run.count("answered", good=False)
        # The API tells nothing of single requests before the end.
        counts = {
            "processing": 0 if ended else run.total,
            "succeeded": good if ended else 0,
            "errored": bad if ended else 0,
            "canceled": run.count("cancelled") if ended else 0,
            "expired": run.count("expired") if ended else 0,
        }
        results = request.url.replace(path=f"/v1/messages/batches/{name}/results", query="")
        return {
            "id": name,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if run.cancelled else "in_progress",
            "request_counts": counts,
            "created_at": _time(run.created_at),
            "expires_at": _time(run.expires_at),
            "ended_at": _time(run.times["ended"]) if ended else None,
            "cancel_initiated_at": _time(run.times["cancelling"]) if run.cancelled else None,
            "archived_at": None,
            "results_url": str(results) if ended else None,
        }


def _line(outcome: Outcome) -> dict[str, Any]:
    result: dict[str, Any]
    if outcome.kind != "answered":
        result = {"type": "canceled" if outcome.kind == "cancelled" else "expired"}
    elif outcome.status < 400:
        result = {"type": "succeeded", "message": outcome.body}
    else:
        result = {"type": "errored", "error": outcome.body}
    return {"custom_id": outcome.custom_id, "result": result}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _missing() -> Response:
    return error(404, "no such batch of messages")
