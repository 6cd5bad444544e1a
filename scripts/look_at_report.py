"""Makes books, renders ``tenth report --html`` and looks at it in headless Chromium.

``python scripts/look_at_report.py``: a real ledger process gets some hundred varied receipts through gRPC; its page is
opened at 1280 and 390 pixels, in English and Korean, light and dark, and once printed. The screenshots stand
in the folder that ``--out`` names. Fails on anything in the browser's console, on any request for something else than
the page, on text too small for a phone, and on a page that is wider than its window. ``--page FILE`` looks at a page
that is already there. Needs ``chromium``, Korean fonts (Debian: chromium, fonts-noto-cjk) and the extra `report`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import yaml
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.auth import Identity, Signer, set_identity
from mesh.channel import connect
from mesh.errors import TenthError
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry
from mesh.wire import build_receipt, price_from_proto

ROOT = Path(__file__).resolve().parent.parent
IDENTITY_KEY = b"a key of at least sixteen bytes"
API_KEY = "look"
BASELINE = "claude-opus-4-7"
MODELS = ("smollm2-135m", "gpt-4o-mini", "claude-haiku-4-5-20251001", "gpt-4o", "gemini-2.5-flash", BASELINE)
PROJECTS = ("helpdesk", "상담 챗봇", "<script>alert(1)</script>", "a-project-whose-name-is-rather-long-for-a-phone", "")
DAYS = 16
WIDTHS = (1280, 390)


async def main() -> int:
    """Make the books, render, look. Returns the number of problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / ".data" / "look", help="where the screenshots go")
    parser.add_argument("--receipts", type=int, default=600)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--page", type=Path, help="look at this page instead, e.g. bench/report.html")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    if arguments.page is not None:
        problems = look_at(arguments.page, arguments.chromium, arguments.out)
        print(*problems or ["no problem found"], sep="\n")
        return len(problems)
    with tempfile.TemporaryDirectory(prefix="tenth-look-") as name:
        folder = Path(name)
        with ledger(folder) as port:
            currency = await fill(port, arguments.receipts)
            (folder / "client.json").write_text(
                json.dumps({"addresses": {"ledger": f"127.0.0.1:{port}"}, "api_key": API_KEY})
            )
            for language in ("en", "ko"):
                render(folder, arguments.out / f"report.{language}.html", language, currency)
        for language in ("en", "ko"):
            file = arguments.out / f"report.{language}.html"
            with Browser(arguments.chromium, folder) as browser:
                for width in WIDTHS:
                    for theme in ("light", "dark"):
                        shot = arguments.out / f"{language}-{width}-{theme}.png"
                        problems += browser.look(file, width, theme, shot)
                browser.print(arguments.out / f"{language}.pdf")
    print(*problems or ["no problem found"], sep="\n")
    return len(problems)


def look_at(page: Path, chromium: str, out: Path) -> list[str]:
    """A page that is already there, at every width in both themes."""
    # Chromium writes into its profile until the last of its processes is gone.
    profile = tempfile.TemporaryDirectory(prefix="tenth-look-", ignore_cleanup_errors=True)
    with profile as name, Browser(chromium, Path(name)) as browser:
        return [
            problem
            for width in WIDTHS
            for theme in ("light", "dark")
            for problem in browser.look(page, width, theme, out / f"{page.stem}-{width}-{theme}.png")
        ]


@contextmanager
def ledger(folder: Path) -> Iterator[int]:
    """A ledger process on a free port, with callers and keys of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    callers = {
        "callers": [
            {
                "name": "finance",
                "tenant_id": "acme",
                "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest(),
                "may_see_all_tenants": True,
                "may_call": ["tenth.ledger.v1.LedgerReadService/*"],
            }
        ],
        "services": {"orchestrator": ["*"]},
        "tenants": [{"tenant_id": tenant, "baseline_model": BASELINE} for tenant in ("acme", "한빛")],
    }
    (folder / "callers.yaml").write_text(yaml.safe_dump(callers, allow_unicode=True), "utf-8")
    (folder / "key").write_bytes(IDENTITY_KEY)
    environment = {
        **os.environ,
        "TENTH_LISTEN": f"127.0.0.1:{port}",
        "TENTH_DATA_DIR": str(folder),
        "TENTH_CALLERS_FILE": str(folder / "callers.yaml"),
        "TENTH_IDENTITY_KEY_FILE": str(folder / "key"),
        "TENTH_UNREADY_SECONDS": "0",
        "TENTH_LEDGER_CATALOG_FILE": str(ROOT / "deploy" / "catalog.yaml"),
    }
    process = subprocess.Popen([sys.executable, "-m", "services.ledger"], cwd=ROOT, env=environment)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def fill(port: int, count: int) -> str:
    """Settle receipts; returns the currency that the ledger has rates for, or nothing."""
    set_identity(Identity(tenant_id="acme", caller="look", may_see_all_tenants=True))
    channel = connect(f"127.0.0.1:{port}", MeshSettings(), memory_telemetry()[0], Signer(IDENTITY_KEY, "orchestrator"))
    try:
        writes, snapshot = rpc.LedgerServiceStub(channel), None
        for _ in range(300):
            try:
                snapshot = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(), timeout=2)
                break
            except TenthError:
                await asyncio.sleep(0.1)
        if snapshot is None:
            raise RuntimeError("the ledger did not start")
        made = list(receipts(count, snapshot))
        for at in range(0, count, 100):
            answer = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=made[at : at + 100]), timeout=30)
            refused = [result for result in answer.results if result.error_reason]
            if refused:
                raise RuntimeError(str(refused[0]))
        return await add_rate(writes)
    finally:
        await channel.close()


async def add_rate(writes: Any) -> str:
    """Enter a rate for the won; an older ledger has no such call."""
    rate = pb.ExchangeRate(currency="KRW", units_per_usd="1462.5", source="an example's rate, not a real one")
    rate.valid_from_time.FromDatetime(datetime(2025, 1, 1, tzinfo=UTC))
    try:
        await writes.AddExchangeRate(pb.AddExchangeRateRequest(rate=rate), timeout=10)
    except TenthError as error:
        print(f"without KRW: {error}")
        return ""
    return "KRW"


def receipts(count: int, snapshot: pb.GetAdmissionSnapshotResponse) -> Iterator[receipt_pb2.Receipt]:
    """Receipts of many kinds over some days: hits, failures, batches, a prompt cache that cost more than it saved."""
    dice = random.Random(7)  # noqa: S311  # Not for secrets: the same books every time.
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS)
    for index in range(count):
        day = min(int(dice.triangular(0, DAYS, DAYS * 0.7)), DAYS - 1)
        day += day == 5  # A day without any request.
        start = begin + timedelta(days=day, hours=dice.gauss(13, 3) % 24)
        model = dice.choices(MODELS, (2, 5, 4, 2, 1, 2))[0]
        tokens, output = int(dice.lognormvariate(7.6, 0.9)) + 50, int(dice.lognormvariate(5.3, 0.6)) + 10
        sent = int(tokens * dice.uniform(0.55, 1)) if dice.random() < 0.4 else tokens
        facts = receipt_pb2.ReceiptFacts(
            request_id=f"0192f3a4-7c1e-7b2a-9d55-{index:012x}",
            tenant_id="한빛" if dice.random() < 0.3 else "acme",
            project_id=dice.choice(PROJECTS),
            user_id=f"user-{index % 40}",
            tags={"team": dice.choice(("blue", "=green"))},
            price_book_version=snapshot.price_book_version,
            baseline_model=BASELINE,
            baseline_input_token_count=tokens,
            model=model,
            original_input_token_count=tokens,
            usage=usage_pb2.Usage(input_token_count=sent, output_token_count=output),
            attempt=1,
        )
        seconds = dice.lognormvariate(0.6, 0.5)
        chance = dice.random()
        if day <= 4 and chance > 0.5:
            # Dear, and read by nobody: the layer costs more than it saves.
            facts.model = model = BASELINE
            facts.usage.cache_write_1h_token_count = sent
        elif chance < 0.25 + 0.01 * day:
            facts.cache_hit, facts.cache_hit_kind, seconds = True, dice.choice(("exact", "semantic")), 0.03
            facts.attempt = 0
        elif chance < 0.46:
            facts.usage.cache_write_5m_token_count = sent // 2
        elif chance < 0.56 and day > 6:
            facts.usage.cached_input_token_count = int(sent * 0.8)
        elif chance < 0.64:
            facts.batch = True
        if chance > 0.965:
            facts.failed, facts.attempt = True, 0
            facts.ClearField("usage")
            facts.overheads.add(
                kind="failed_attempt", model=model, attempt=1, usage=usage_pb2.Usage(input_token_count=sent)
            )
        elif dice.random() < 0.3:
            used = usage_pb2.Usage(input_token_count=220, output_token_count=6)
            facts.overheads.add(kind="classifier", model="gpt-4o-mini", usage=used)
        facts.create_time.FromDatetime(start)
        facts.end_time.FromDatetime(start + timedelta(seconds=seconds))
        book = {
            price.model: price_from_proto(price)
            for price in snapshot.prices
            if price.valid_from_time.ToDatetime(UTC) <= start
            and not (price.HasField("valid_to_time") and price.valid_to_time.ToDatetime(UTC) <= start)
        }
        yield build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)


def render(folder: Path, out: Path, language: str, currency: str) -> None:
    """Run the real command."""
    command = [sys.executable, "-m", "tenth_client.cli", "report", "--html", str(out), "--lang", language]
    command += ["--time-zone", "Asia/Seoul", "--data-dir", str(folder), "--by", "model"]
    subprocess.run([*command, "--currency", currency] if currency else command, check=True, cwd=ROOT)


class Browser:
    """Headless Chromium, driven by its DevTools protocol over two pipes."""

    def __init__(self, program: str, folder: Path) -> None:
        self._command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'chromium'}",
        ]
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session = ""

    def __enter__(self) -> Browser:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *self._command],
            pass_fds=(to_read, from_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._to: IO[bytes] = os.fdopen(to_write, "wb", buffering=0)
        self._from: IO[bytes] = os.fdopen(from_read, "rb")
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._to.close()
        self._from.close()

    def look(self, file: Path, width: int, theme: str, shot: Path) -> list[str]:
        """Open the page, take a picture of all of it, and say what is wrong."""
        self._events.clear()
        scale = 2 if width < 500 else 1
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=scale, mobile=width < 500
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self._call("Page.navigate", url=file.resolve().as_uri())
        self._wait("Page.loadEventFired")
        sizes = self._evaluate(
            "JSON.stringify({page: document.documentElement.scrollWidth, window: innerWidth, open: "
            "(document.querySelectorAll('details').forEach(each => each.open = true), "
            "document.documentElement.scrollWidth), small: [...document.querySelectorAll('main *')].filter(each => "
            "each.checkVisibility() && !each.closest('svg') && parseFloat(getComputedStyle(each).fontSize) < 13)"
            ".map(each => each.tagName + ' ' + each.className)})"
        )
        found = json.loads(sizes)
        picture = self._call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        shot.write_bytes(base64.b64decode(picture["data"]))
        where = f"{file.name} at {width} px, {theme}"
        problems = [f"{where}: text below 13 px: {name}" for name in set(found["small"])]
        problems += [
            f"{where}: {found[key]} px wide in a window of {found['window']} px"
            for key in ("page", "open")
            if found[key] > found["window"]
        ]
        return problems + [f"{where}: {text}" for text in self._complaints(file)]

    def print(self, out: Path) -> None:
        """The page on paper, A4."""
        paper = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        out.write_bytes(base64.b64decode(paper["data"]))

    def _complaints(self, file: Path) -> Iterator[str]:
        for event in self._events:
            method, body = event["method"], event.get("params", {})
            if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                yield f"console: {json.dumps(body, ensure_ascii=False)[:300]}"
            if method == "Network.requestWillBeSent":
                url = body["request"]["url"]
                if url != file.resolve().as_uri() and not url.startswith("data:"):
                    yield f"asked for {url}"

    def _evaluate(self, expression: str) -> str:
        return str(self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._read()

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("chromium ended")
            text += byte
        message: dict[str, Any] = json.loads(bytes(text))
        if "method" in message:
            self._events.append(message)
        return message


if __name__ == "__main__":
    sys.exit(min(asyncio.run(main()), 1))
