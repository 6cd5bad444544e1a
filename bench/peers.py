"""LiteLLM's proxy as a process beside the mesh, where it is installed (an environment of its own)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

_READY_SECONDS = 90.0
KEY = "sk-bench"


@dataclass(slots=True)
class Proxy:
    """A running proxy."""

    url: str
    pid: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def start_litellm(
    environment: Path, upstream_url: str, port: int, folder: Path, config: Mapping[str, Any] | None = None
) -> Proxy | None:
    """Start the proxy in front of an OpenAI-compatible server; None if absent.

    Without a configuration it has one model and its in-memory cache on.
    """
    proxy = await asyncio.to_thread(_spawn, environment, port, folder, config or one_model(upstream_url))
    if proxy is None:
        return None
    async with httpx.AsyncClient() as http:
        for _ in range(int(_READY_SECONDS / 0.5)):
            await asyncio.sleep(0.5)
            try:
                if (await http.get(f"{proxy.url}/health/liveliness", timeout=2)).status_code == 200:
                    return proxy
            except httpx.HTTPError:
                if proxy.process.poll() is not None:
                    return None
    proxy.stop()
    return None


def litellm_version(environment: Path) -> str:
    """The version installed in an environment; empty when it is not."""
    found = sorted(environment.glob("lib/python*/site-packages/litellm-*.dist-info"))
    return found[0].name.removeprefix("litellm-").removesuffix(".dist-info") if found else ""


def one_model(upstream_url: str) -> dict[str, Any]:
    """A configuration of one model, with the in-memory cache on."""
    return {
        "model_list": [
            {
                "model_name": "gpt-4o-mini",
                "litellm_params": {"model": "openai/gpt-4o-mini", "api_base": upstream_url, "api_key": "bench"},
            }
        ],
        "litellm_settings": {"cache": True, "cache_params": {"type": "local"}, "telemetry": False},
        "general_settings": {"master_key": KEY},
    }


def _spawn(environment: Path, port: int, folder: Path, config: Mapping[str, Any]) -> Proxy | None:
    executable = environment / "bin" / "litellm"
    if not executable.exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    environ = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "NO_DOCS": "True",
    }
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (the command is ours)
            [str(executable), "--config", str(file), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
        )
    return Proxy(f"http://127.0.0.1:{port}", process.pid, process)
