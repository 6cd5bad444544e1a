"""The supervisor with real, tiny processes: order, health, crashes, signals, logs, a clean stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenth_client.processes import StartError, health_of, healthy
from tenth_client.up import Mesh, MeshOptions

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
STAGES = (("ledger",), ("cache",), ("orchestrator",))


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "catalog.yaml").write_text(yaml.safe_dump({"providers": {}, "models": {}}))
    (folder / "callers.yaml").write_text(yaml.safe_dump({"callers": [], "services": {}}))
    return folder


def mesh_of(deploy: Path, behaviour: dict[str, str] | None = None, lines: list[str] | None = None, **more: Any) -> Mesh:
    stages = more.pop("stages", STAGES)
    options = MeshOptions(
        data_dir=deploy.parent / "data",
        deploy_dir=deploy,
        free_ports=True,
        stages=stages,
        commands={service: STAND_IN for stage in stages for service in stage},
        env={name: {"STAND_IN": what} for name, what in (behaviour or {}).items()},
        **{"grace_seconds": 5.0, **more},
    )
    return Mesh(options, say=lambda name, line: (lines if lines is not None else []).append(f"{name}: {line}"))


def order(deploy: Path) -> list[str]:
    return (deploy.parent / "data" / "order").read_text().split()


async def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        await asyncio.sleep(0.02)


async def test_starts_in_order_and_stops_in_reverse(deploy: Path) -> None:
    lines: list[str] = []
    async with mesh_of(deploy, {"ledger": "slow"}, lines) as mesh:
        assert mesh.names == ("ledger", "cache", "orchestrator")
        assert all(mesh.pids.values())
        assert await health_of(mesh.address("orchestrator")) == "SERVING"
        assert order(deploy) == ["+ledger", "+cache", "+orchestrator"]
        pids = mesh.pids
    assert order(deploy)[3:] == ["-orchestrator", "-cache", "-ledger"]
    assert not any(alive(pid) for pid in pids.values())
    assert "cache: start 1 threads 1" in lines
    assert "start 1 threads 1" in mesh.log_file("cache").read_text()


async def test_a_killed_process_comes_back_on_its_port(deploy: Path) -> None:
    async with mesh_of(deploy) as mesh:
        address, pid = mesh.address("cache"), mesh.pids["cache"]
        mesh.kill("cache")
        await until(lambda: mesh.pids["cache"] not in (0, pid))
        await mesh.wait_ready("cache")
        assert mesh.address("cache") == address
        assert await healthy(address)
        assert mesh.restarts("cache") == 1
        assert mesh.restarts("ledger") == 0


async def test_a_process_can_be_kept_down(deploy: Path) -> None:
    async with mesh_of(deploy) as mesh:
        mesh.kill("cache", restart=False)
        await until(lambda: mesh.pids["cache"] == 0)
        await asyncio.sleep(0.5)
        assert not await healthy(mesh.address("cache"))
        await mesh.restart("cache")
        assert await healthy(mesh.address("cache"))
        pid = mesh.pids["cache"]
        mesh.kill("cache")
        await until(lambda: mesh.pids["cache"] not in (0, pid))


async def test_rolling_restart_changes_every_process(deploy: Path) -> None:
    async with mesh_of(deploy, replicas={"cache": 2}) as mesh:
        assert mesh.names == ("ledger", "cache-1", "cache-2", "orchestrator")
        before = mesh.pids
        await mesh.rolling_restart()
        after = mesh.pids
        assert all(after.values())
        assert all(before[name] != after[name] for name in before)
        await mesh.rolling_restart(["cache"])
        assert mesh.pids["ledger"] == after["ledger"]
        assert mesh.pids["cache-2"] != after["cache-2"]


async def test_a_crash_at_the_start_is_tried_again(deploy: Path) -> None:
    async with mesh_of(deploy, {"ledger": "crash-once"}) as mesh:
        assert mesh.restarts("ledger") == 1


@pytest.mark.parametrize(
    ("behaviour", "words"), [("refuse", "refused its settings:\n.*TENTH_X: is wrong"), ("crash", "ended 3 times")]
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(deploy: Path, behaviour: str, words: str) -> None:
    mesh = mesh_of(deploy, {"cache": behaviour})
    with pytest.raises(StartError, match="(?s)cache " + words):
        async with mesh:
            pass
    assert not any(mesh.pids.values())
    assert order(deploy) == ["+ledger", "-ledger"], "what had started is stopped, what comes later is not begun"


async def test_a_deaf_process_is_killed(deploy: Path) -> None:
    lines: list[str] = []
    async with mesh_of(deploy, {"cache": "deaf"}, lines, grace_seconds=0.5) as mesh:
        pid = mesh.pids["cache"]
    assert not alive(pid)
    assert any("did not stop within 0.5 s" in line for line in lines)


async def test_a_line_without_end_does_not_stop_the_log(deploy: Path) -> None:
    async with mesh_of(deploy, {"cache": "long-line"}) as mesh:
        assert await healthy(mesh.address("cache"))


async def test_health_words(deploy: Path) -> None:
    async with mesh_of(deploy, stages=(("ledger",),)) as mesh:
        address = mesh.address("ledger")
        assert await healthy(address, "tcp")
    assert await health_of(address, 0.5) in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert not await healthy(address)
    assert await healthy(address, "none")


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
async def test_a_killed_supervisor_leaves_no_process(deploy: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from tenth_client.up import Mesh, MeshOptions
        async def main():
            deploy = Path(sys.argv[1])
            options = MeshOptions(data_dir=deploy.parent / "data", deploy_dir=deploy, free_ports=True,
                stages=(("ledger",),), commands={"ledger": sys.argv[2:]})
            async with Mesh(options) as mesh:
                print(mesh.pids["ledger"], flush=True)
                await asyncio.sleep(60)
        asyncio.run(main())
        """
    )
    with subprocess.Popen(  # noqa: ASYNC220  (our own script; the test waits for it anyway)
        [sys.executable, "-c", script, str(deploy), *STAND_IN], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(await asyncio.to_thread(supervisor.stdout.readline))
        assert alive(pid)
        supervisor.send_signal(signal.SIGKILL)
    await until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has waited for is dead all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
