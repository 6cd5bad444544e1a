"""Notices of spot machines over HTTP, as AWS, Google and Azure give them, from a small local server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.batch.preemption import parse, watch
from tests.integration.batch.batch_engine_rig import until

ROOT = Path(__file__).resolve().parents[3]


class Metadata(BaseHTTPRequestHandler):
    """The three clouds' metadata services."""

    planned: set[str] = set()  # noqa: RUF012  (a test's handler is made anew for each request)
    tokens = 0

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "300"
        type(self).tokens += 1
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        if self.path.startswith("/latest/meta-data") and self.headers["X-aws-ec2-metadata-token"] == "a-token":
            body = json.dumps({"action": "terminate"})
            return self._answer(*((200, body) if "aws-spot" in self.planned else (404, "")))
        if self.path.startswith("/computeMetadata") and self.headers["Metadata-Flavor"] == "Google":
            return self._answer(200, "TRUE" if "google-spot" in self.planned else "FALSE")
        if self.path.startswith("/metadata/scheduledevents") and self.headers["Metadata"] == "true":
            events = [{"EventType": "Preempt"}] if "azure-spot" in self.planned else []
            return self._answer(200, json.dumps({"Events": events}))
        return self._answer(401, "")

    def _answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.planned.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("cloud", ["aws-spot", "google-spot", "azure-spot"])
async def test_a_cloud_says_that_it_takes_the_machine_away(metadata: str, cloud: str) -> None:
    text = (ROOT / "deploy" / "preemption.yaml").read_text()
    for host in ("http://169.254.169.254", "http://metadata.google.internal"):
        text = text.replace(host, metadata)
    text = text.replace("every_seconds: 5", "every_seconds: 0.02").replace("every_seconds: 2", "every_seconds: 0.02")
    told: list[str] = []
    heard = asyncio.Event()

    def hear(name: str) -> None:
        told.append(name)
        heard.set()

    watching = asyncio.create_task(watch(parse(text), hear))
    try:
        before = Metadata.tokens
        await until(lambda: Metadata.tokens >= before + 3)  # It has looked a few times.
        assert not told, "nothing is planned"
        Metadata.planned.add(cloud)
        await asyncio.wait_for(heard.wait(), 10)
        assert told == [cloud]
    finally:
        watching.cancel()
