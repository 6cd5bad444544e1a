"""The supervisor behind ``tenth up``: every service as a process on loopback, durable files under one directory.

Spawns ``python -m services.<name>`` and imports none of them. Also used as a library by the demo, the end-to-end
tests and the benchmarks:

    async with Mesh(MeshOptions(data_dir=path, free_ports=True, replicas={"cache": 2})) as mesh:
        async with Client(mesh.address("orchestrator"), mesh.api_key) as client: ...
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import random
import secrets
import signal as signals
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tenth_client.connection import CLIENT_FILE, Connection
from tenth_client.processes import ProcessSpec, SupervisedProcess

HOST = "127.0.0.1"
PORTS = {
    "collector": 4317,
    "orchestrator": 7100,
    "cache": 7101,
    "router": 7102,
    "compressor": 7103,
    "inference": 7104,
    "ledger": 7105,
    "sandbox": 7190,
}
STAGES: tuple[tuple[str, ...], ...] = (
    ("collector", "ledger"),
    ("inference", "cache", "sandbox"),
    ("router", "compressor"),
    ("orchestrator",),
)
"""Started stage by stage, each gated on the health of the one before; stopped in the reverse order."""
MODULES = {"collector": "sandbox.collector", "sandbox": "sandbox.provider"}
"""Modules of the parts that are no service; a service ``x`` is ``services.x``."""
READY_SECONDS = {"inference": 240.0, "cache": 120.0}
"""These load a model."""
LOCAL_CALLER = "local"
LOCAL_TENANT = "demo"

# One process per core's worth of work: OpenMP pools of several processes on few cores slow each other by a factor
# of fifty (an embedding of 8 ms took 480 ms), so every process gets its count here and nowhere else.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
INFERENCE_THREADS = min(os.cpu_count() or 1, max(2, (os.cpu_count() or 1) - 2))
"""Threads of the model's own process: it alone may use more than one."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """How to run the mesh. ``sandbox``: "auto" plays providers without a key by the local model, "instant" plays
    them with canned text at once, "off" leaves them unavailable. ``env`` is extra environment by service name
    ("*": every process); ``extra`` further processes, started before everything else."""

    data_dir: Path = Path(".data")
    models_dir: Path = Path(".models")
    deploy_dir: Path = Path("deploy")
    local_model: bool = True
    sandbox: str = "auto"
    collector: bool = True
    free_ports: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    grace_seconds: float = 15.0
    stages: Sequence[Sequence[str]] = STAGES
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Another command for a service, for tests; it gets the same environment."""


Say = Callable[[str, str], None]


def quiet(name: str, line: str) -> None:
    """Show nothing; the log files have it."""


class Mesh:
    """The whole mesh as processes. An async context manager: started on entry, stopped on exit."""

    def __init__(self, options: MeshOptions, say: Say = quiet, environ: Mapping[str, str] | None = None) -> None:
        if options.sandbox not in ("auto", "off", "model", "instant"):
            raise ValueError(f"sandbox: {options.sandbox!r} is not one of auto, off, model, instant")
        self.options = options
        self.data_dir = options.data_dir.resolve()
        self.api_key = ""
        self.played_providers: tuple[str, ...] = ()
        """Providers without a key, played by the sandbox."""
        self._say = say
        self._environ = dict(os.environ if environ is None else environ)
        self._ports: dict[str, int] = {}
        self._processes: dict[str, SupervisedProcess] = {}
        self._catalog: dict[str, Any] = {}

    async def __aenter__(self) -> Mesh:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def addresses(self) -> dict[str, str]:
        """The client-side address of every service; replicas are joined by commas."""
        return {name: self.address(name) for name in self._services()}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by process name ("cache", or "cache-1", "cache-2"); 0 for one that does not run."""
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The process names, in the order in which they were started."""
        return tuple(self._processes)

    @property
    def connection(self) -> Connection:
        """What the ``tenth`` command and Client need."""
        return Connection(self.addresses, self.api_key, origin=str(self.data_dir / CLIENT_FILE))

    @property
    def played_by(self) -> str:
        """Who plays the providers without a key: "the local model" or "canned text"."""
        instant = self.options.sandbox == "instant" or not self.options.local_model
        return "canned text" if instant else "the local model"

    @property
    def trace_file(self) -> Path:
        """The collector's database."""
        return self.data_dir / "collector" / "traces.db"

    def address(self, service: str) -> str:
        """host:port of a service, or ``ipv4:a:1,b:2`` of its replicas."""
        found = [f"{HOST}:{self._ports[name]}" for name in self._replica_names(service)]
        return found[0] if len(found) == 1 else "ipv4:" + ",".join(found)

    def process_address(self, name: str) -> str:
        """host:port of one process, e.g. "cache-2"."""
        return f"{HOST}:{self._ports[name]}"

    def log_file(self, name: str) -> Path:
        """Where a process's output goes."""
        return self.data_dir / "logs" / f"{name}.log"

    def restarts(self, name: str) -> int:
        """How often a crashed process was started again."""
        return self._processes[name].state.restarts

    async def start(self) -> None:
        """Write the local files, then start stage by stage. Raises StartError; call ``stop`` then as well."""
        self._prepare()
        for stage in self.options.stages:
            started = [self._add(name) for service in stage if self._wants(service) for name in self._names(service)]
            for process in started:
                await process.start()
            await self._all_ready(started)

    async def stop(self) -> None:
        """SIGTERM in the reverse order of starting, SIGKILL after the grace."""
        # The collector goes last: the others send their last spans while they stop.
        stages = [[service for service in stage if service != "collector"] for stage in self.options.stages]
        for stage in [["collector"], *stages][::-1]:
            names = [name for service in stage for name in self._names(service) if name in self._processes]
            await asyncio.gather(*(self._processes[name].stop(self.options.grace_seconds) for name in names))

    def kill(self, name: str, number: int = signals.SIGKILL, *, restart: bool = True) -> None:
        """Send a signal to one process. ``restart`` False leaves it down until ``restart(name)``."""
        self._processes[name].signal(number, restart=restart)

    async def wait_ready(self, name: str) -> None:
        """Wait until a process is healthy. Raises StartError."""
        await self._processes[name].ready()

    async def restart(self, name: str) -> None:
        """Stop one process cleanly and start it on the same port; returns when it is healthy again."""
        process = self._processes[name]
        await process.stop(self.options.grace_seconds)
        await process.start()
        await process.ready()

    async def rolling_restart(self, services: Sequence[str] = ()) -> None:
        """Restart every process (or those of the named services) in turn, each healthy before the next."""
        for stage in self.options.stages:
            for service in stage:
                if services and service not in services:
                    continue
                for name in self._names(service):
                    if name in self._processes:
                        await self.restart(name)

    # Local files

    def _prepare(self) -> None:
        for folder in (self.data_dir, self.data_dir / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        self._catalog = _read_yaml(self.options.deploy_dir / "catalog.yaml")
        if not self.options.local_model:
            without_local_model(self._catalog)
        self.played_providers = self._without_key() if self.options.sandbox != "off" else ()
        names = [name for service in self._services() for name in self._replica_names(service)]
        self._ports = free_ports(names) if self.options.free_ports else _fixed_ports(names)
        saved = self.data_dir / CLIENT_FILE
        self.api_key = _kept(saved, lambda text: str(json.loads(text)["api_key"])) or secrets.token_urlsafe(32)
        identity = self.data_dir / "identity.key"
        if not identity.exists():
            write_private(identity, secrets.token_hex(32) + "\n")
        write_private(saved, json.dumps({"addresses": self.addresses, "api_key": self.api_key}, indent=2) + "\n")
        callers = with_local_caller(_read_yaml(self.options.deploy_dir / "callers.yaml"), self.api_key)
        write_private(self.data_dir / "callers.yaml", yaml.safe_dump(callers, allow_unicode=True, sort_keys=False))
        catalog = yaml.safe_dump(self._catalog, allow_unicode=True, sort_keys=False)
        (self.data_dir / "catalog.yaml").write_text(catalog, "utf-8")

    def _without_key(self) -> tuple[str, ...]:
        providers: Mapping[str, Mapping[str, Any]] = self._catalog.get("providers", {})
        keys = {name: str(entry.get("key_env", "")) for name, entry in providers.items()}
        return tuple(sorted(name for name, key in keys.items() if key and not self._environ.get(key)))

    def _wants(self, service: str) -> bool:
        if service == "collector":
            return self.options.collector
        if service == "sandbox":
            return bool(self.played_providers)
        return True

    def _services(self) -> list[str]:
        return [service for stage in self.options.stages for service in stage if self._wants(service)]

    def _names(self, service: str) -> list[str]:
        return self._replica_names(service) if service in self._services() else []

    def _replica_names(self, service: str) -> list[str]:
        count = self.options.replicas.get(service, 1)
        return [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]

    # Processes

    def _add(self, name: str) -> SupervisedProcess:
        service = name.partition("-")[0]
        module = MODULES.get(service, f"services.{service}")
        command = self.options.commands.get(service) or [sys.executable, "-m", module, *self._arguments(name)]
        spec = ProcessSpec(
            name=name,
            command=command,
            env=self._env(name, service),
            address=self.process_address(name),
            health="tcp" if service == "sandbox" else "grpc",
            ready_seconds=READY_SECONDS.get(service, 60.0),
        )
        process = self._processes[name] = SupervisedProcess(spec, self.log_file(name), self._say)
        return process

    def _arguments(self, name: str) -> list[str]:
        if name == "collector":
            self.trace_file.parent.mkdir(parents=True, exist_ok=True)
            return ["--listen", self.process_address(name), "--db", str(self.trace_file)]
        return []

    def _env(self, name: str, service: str) -> dict[str, str]:
        folder = self.data_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        models = str(self.options.models_dir.resolve())
        catalog = str(self.data_dir / "catalog.yaml")
        env = {
            **self._environ,
            **dict.fromkeys(_THREADS, str(INFERENCE_THREADS if service == "inference" else 1)),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "GRPC_VERBOSITY": "ERROR",
            "TENTH_LISTEN": self.process_address(name),
            "TENTH_DATA_DIR": str(folder),
            "TENTH_MODELS_DIR": models,
            "TENTH_CALLERS_FILE": str(self.data_dir / "callers.yaml"),
            "TENTH_IDENTITY_KEY_FILE": str(self.data_dir / "identity.key"),
        }
        if self.options.collector and "collector" in self._services():
            env["TENTH_OTLP_ENDPOINT"] = self.address("collector")
        prefix = f"TENTH_{service.upper()}_"
        if service in ("router", "compressor", "inference", "ledger"):
            env[prefix + "CATALOG_FILE"] = catalog
        if service in ("cache", "compressor", "inference"):
            env[prefix + "MODELS_DIR"] = models
        for other in _CALLS.get(service, ()):
            if self._names(other):
                env[f"{prefix}{other.upper()}_ADDRESS"] = self._address_for_services(other)
        if service == "inference":
            env[prefix + "THREADS"] = str(INFERENCE_THREADS)
        if service == "inference" and self.played_providers:
            env[prefix + "SANDBOX_URL"] = f"http://{self.address('sandbox')}/v1"
        if service == "sandbox":
            env[prefix + "MODE"] = "model" if self.played_by == "the local model" else "instant"
            env[prefix + "INFERENCE_ADDRESS"] = self._address_for_services("inference")
        env.update(self.options.env.get("*", {}))
        env.update(self.options.env.get(service, {}))
        if name != service:
            env.update(self.options.env.get(name, {}))
        return env

    def _address_for_services(self, service: str) -> str:
        address = self.address(service)
        # The cache is sharded: its callers choose the replica by rendezvous hashing over this list.
        return address.removeprefix("ipv4:") if service == "cache" else address

    async def _all_ready(self, processes: Sequence[SupervisedProcess]) -> None:
        tasks = [asyncio.create_task(process.ready()) for process in processes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


_CALLS: Mapping[str, tuple[str, ...]] = {
    "orchestrator": ("cache", "router", "compressor", "inference", "ledger"),
    "router": ("inference",),
    "compressor": ("cache",),
    "inference": ("ledger",),
}
"""Whose address each service is given."""


def missing_local_model(deploy_dir: Path, models_dir: Path) -> str:
    """Why the catalogue's local model cannot run here, in words; empty when it can (or the catalogue has none)."""
    catalog = _read_yaml(deploy_dir / "catalog.yaml")
    local = {name for name, entry in catalog.get("providers", {}).items() if entry.get("backend") == "vllm"}
    entries = [entry for entry in catalog.get("models", {}).values() if entry.get("provider") in local]
    if not entries:
        return ""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed (it has no wheel for some machines): a remote OpenAI-compatible URL can serve"
    for entry in entries:
        name = str(entry.get("provider_model", ""))
        # A name with a slash is a hub's model id, a folder of no concern here.
        if "/" not in name and not (models_dir / name).is_dir():
            return f"{models_dir / name} is absent; `make models` builds it"
    return ""


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A free loopback port for each name.

    Taken below the kernel's range for outgoing connections (from 32768): a port from that range can be taken by
    somebody's outgoing connection while the service that owns it restarts.
    """
    found: dict[str, int] = {}
    candidates = iter(random.sample(range(20_000, 32_000), 2_000))
    for name in names:
        for port in candidates:
            with socket.socket() as probe:
                try:
                    probe.bind((HOST, port))
                except OSError:
                    continue
            found[name] = port
            break
    return found


def _fixed_ports(names: Sequence[str]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for name in names:
        service, _, number = name.partition("-")
        # Replicas after the first stand a hundred ports further on: 7101, 7201, ...
        ports[name] = PORTS[service] + 100 * (int(number or 1) - 1)
    return ports


def with_local_caller(callers: dict[str, Any], api_key: str) -> dict[str, Any]:
    """The callers file with the local caller, who may do everything."""
    local = {
        "name": LOCAL_CALLER,
        "tenant_id": LOCAL_TENANT,
        "key_sha256": hashlib.sha256(api_key.encode()).hexdigest(),
        "may_assert_user": True,
        "may_see_all_tenants": True,
        "may_call": ["*"],
    }
    others = [caller for caller in callers.get("callers") or [] if caller.get("name") != LOCAL_CALLER]
    return {**callers, "callers": [*others, local]}


def without_local_model(catalog: dict[str, Any]) -> None:
    """Take the providers that run in the inference service's own process, their models and prices out."""
    local = {name for name, entry in catalog.get("providers", {}).items() if entry.get("backend") == "vllm"}
    models = {name for name, entry in catalog.get("models", {}).items() if entry.get("provider") in local}
    for name in local:
        del catalog["providers"][name]
    for name in models:
        del catalog["models"][name]
    if isinstance(catalog.get("prices"), list):
        catalog["prices"] = [row for row in catalog["prices"] if row.get("model") not in models]


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is absent: run this in Tenth's repository, or name its deploy directory with --deploy-dir"
        ) from None
    return dict(content or {})


def _kept(path: Path, read: Callable[[str], str]) -> str:
    try:
        return read(path.read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return ""
