"""What CONTRIBUTING.md says about adding a service is true: its files, as they stand there, are a service."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.channel import connect
from mesh.errors import TenthError
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with nothing but the files of the page, and the code that its proto generates."""
    root = tmp_path_factory.mktemp("greeter")
    for name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "services" / "__init__.py").write_text((ROOT / "services" / "__init__.py").read_text())
    (root / "mesh").symlink_to(ROOT / "mesh")
    (root / "buf.yaml").write_text((ROOT / "buf.yaml").read_text())
    (root / "scripts").mkdir()
    (root / "scripts" / "protos.py").write_text((ROOT / "scripts" / "protos.py").read_text())
    subprocess.run([sys.executable, "scripts/protos.py"], cwd=root, check=True)
    return root


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "gen")])}


def test_the_page_names_every_common_file(tree: Path) -> None:
    made = {path.name for path in (tree / "services" / "greeter").glob("*.py")}
    assert made == {"__init__.py", "__main__.py", "settings.py", "servicer.py", "policy.py", "errors.py"}


def test_the_files_pass_the_checks(tree: Path) -> None:
    tools = Path(sys.executable).parent
    for command in (
        [str(tools / "buf"), "lint"],
        [str(tools / "buf"), "format", "--diff", "--exit-code"],
        [str(tools / "ruff"), "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), "services"],
        [str(tools / "ruff"), "format", "--no-cache", "--check", "--config", str(ROOT / "pyproject.toml"), "services"],
    ):
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextlib.asynccontextmanager
async def greeter(tree: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    (tree / "key").write_text("sixteen bytes and more")
    variables = {
        **environment(tree),
        "TENTH_LISTEN": address,
        "TENTH_CALLERS_FILE": str(tree / "deploy" / "callers.yaml"),
        "TENTH_IDENTITY_KEY_FILE": str(tree / "key"),
        "TENTH_GREETER_SALUTATION": "Guten Tag",
        "TENTH_DRAIN_SECONDS": "1",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.greeter", cwd=tree, env=variables)
    try:
        check = [sys.executable, "-m", "mesh.healthcheck"]
        for _ in range(60):
            asked = await asyncio.create_subprocess_exec(
                *check, cwd=ROOT, env={**os.environ, "TENTH_LISTEN": address}, stdout=asyncio.subprocess.DEVNULL
            )
            if await asked.wait() == 0:
                break
            assert process.returncode is None, "the service ended"
        else:
            pytest.fail("the service did not become healthy")
        yield process, address
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_the_service_runs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process: healthy by `mesh.healthcheck`, called by stub, refused without a key, stopped by SIGTERM."""
    monkeypatch.syspath_prepend(str(tree / "gen"))
    import tenth

    monkeypatch.setattr(tenth, "__path__", [*tenth.__path__, str(tree / "gen" / "tenth")])
    messages = importlib.import_module("tenth.greeter.v1.greeter_pb2")
    stubs = importlib.import_module("tenth.greeter.v1.greeter_pb2_grpc")
    async with greeter(tree) as (process, address):
        telemetry, _ = memory_telemetry()
        async with connect(address, MeshSettings(), telemetry, api_key="a key for the example") as channel:
            stub = stubs.GreeterServiceStub(channel)
            answer = await stub.Greet(messages.GreetRequest(name="세종"), timeout=10)
            assert answer.greeting == "Guten Tag, 세종."
            with pytest.raises(TenthError) as caught:
                await stub.Greet(messages.GreetRequest(name="x" * 101), timeout=10)
            assert (caught.value.reason, caught.value.field) == ("NAME_TOO_LONG", "request.name")
        async with connect(address, MeshSettings(), telemetry, api_key="another") as channel:
            with pytest.raises(TenthError, match="UNAUTHENTICATED"):
                await stubs.GreeterServiceStub(channel).Greet(messages.GreetRequest(name="a"), timeout=10)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
