"""The supervisor behind ``tenth up``: every service as a process on loopback, durable files under one directory.

Spawns ``python -m services.<name>`` and imports none of them. Also used as a library by the demo, the end-to-end
tests and the benchmarks:

    async with Mesh(MeshOptions(data_dir=path, free_ports=True, replicas={"cache": 2})) as mesh:
        async with Client(mesh.address("orchestrator"), mesh.api_key) as client: ...
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal as signals
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tenth_client import batch_layer
from tenth_client.batch_layer import batch_environment, missing_batch_layer, temporal_command
from tenth_client.connection import CLIENT_FILE, Connection
from tenth_client.local import (
    HOST,
    fixed_ports,
    free_ports,
    is_free,
    kept,
    local_models,
    read_yaml,
    service_of,
    with_local_caller,
    without_local_model,
    write_private,
)
from tenth_client.processes import ProcessSpec, StartError, SupervisedProcess

STAGES: tuple[tuple[str, ...], ...] = (
    ("collector", "ledger"),
    ("inference", "cache", "sandbox", "temporal"),
    ("router", "compressor", "batch"),
    ("orchestrator",),
    ("batch-worker",),
)
"""Started stage by stage, each gated on the health of the one before; stopped in the reverse order."""
MODULES = {"collector": "sandbox.collector", "sandbox": "sandbox.provider", "batch-worker": "services.batch.worker"}
"""Modules of the parts that are no service; a service ``x`` is ``services.x``."""
READY_SECONDS = {"inference": 240.0, "cache": 120.0}
"""These load a model."""

# One process per core's worth of work: OpenMP pools of several processes on few cores slow each other by a factor
# of fifty (an embedding of 8 ms took 480 ms), so every process gets its count here and nowhere else.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
INFERENCE_THREADS = min(os.cpu_count() or 1, max(2, (os.cpu_count() or 1) - 2))
"""Threads of the model's own process: it alone may use more than one."""
INFERENCE_NICE = 10
"""The model keeps every core busy for seconds; hops that need a millisecond must not queue behind it."""
SHARED_CORES = {
    "TENTH_ORCHESTRATOR_LOOKUP_CAP_SECONDS": "1.0",
    "TENTH_ORCHESTRATOR_SELECT_CAP_SECONDS": "1.0",
    "TENTH_ORCHESTRATOR_COMPRESS_CAP_SECONDS": "1.0",
    "TENTH_ORCHESTRATOR_RESERVE_CAP_SECONDS": "3.0",
}
"""Caps of the hops where a model generates on the same cores: an answer takes seconds there, and a lookup given up
after 150 ms, or a budget not asked, would cost more than the wait."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """How to run the mesh. ``replicas`` counts processes by service; ``env`` is extra environment by service or
    process name ("*": every process)."""

    data_dir: Path = Path(".data")
    models_dir: Path = Path(".models")
    deploy_dir: Path = Path("deploy")
    local_model: bool = True
    sandbox: str = "auto"
    """Who plays providers without a key: "auto" or "model" the local model (canned text where there is none),
    "instant" canned text at once, "off" nobody."""
    collector: bool = True
    batch: bool = False
    """With the batch layer: Temporal's development server, the batch service and a worker."""
    free_ports: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    grace_seconds: float = 15.0
    stages: Sequence[Sequence[str]] = STAGES
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """More arguments for a process, e.g. {"sandbox": ("--words", "8")}."""
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
        instant = self.options.sandbox == "instant" or not local_models(self._catalog)
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
        missing = missing_batch_layer() if self.options.batch else ""
        if missing:
            raise StartError(f"no batch layer: {missing}")
        self._catalog = read_yaml(self.options.deploy_dir / "catalog.yaml")
        if not self.options.local_model:
            without_local_model(self._catalog)
        self.played_providers = self._without_key() if self.options.sandbox != "off" else ()
        names = [name for service in self._services() for name in self._replica_names(service)]
        self._ports = free_ports(names) if self.options.free_ports else fixed_ports(names)
        for name, port in self._ports.items():
            if not is_free(port):
                raise StartError(f"port {port} of {name} is taken: does another mesh run? --free-ports chooses others")
        saved = self.data_dir / CLIENT_FILE
        self.api_key = kept(saved, lambda text: str(json.loads(text)["api_key"])) or secrets.token_urlsafe(32)
        identity = self.data_dir / "identity.key"
        if not identity.exists():
            write_private(identity, secrets.token_hex(32) + "\n")
        write_private(saved, json.dumps({"addresses": self.addresses, "api_key": self.api_key}, indent=2) + "\n")
        callers = with_local_caller(read_yaml(self.options.deploy_dir / "callers.yaml"), self.api_key)
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
        return self.options.batch if service in batch_layer.PARTS else True

    def _services(self) -> list[str]:
        return [service for stage in self.options.stages for service in stage if self._wants(service)]

    def _names(self, service: str) -> list[str]:
        return self._replica_names(service) if service in self._services() else []

    def _replica_names(self, service: str) -> list[str]:
        count = self.options.replicas.get(service, 1)
        return [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]

    # Processes

    def _add(self, name: str) -> SupervisedProcess:
        service = service_of(name)
        env = self._env(name, service)
        spec = ProcessSpec(
            name=name,
            command=self.options.commands.get(service) or self._command(name, service),
            env=env,
            address=self.process_address(name),
            health="tcp" if service == "sandbox" else "grpc",
            ready_seconds=READY_SECONDS.get(service, 60.0),
            nice=INFERENCE_NICE if service == "inference" and local_models(self._catalog) else 0,
        )
        process = self._processes[name] = SupervisedProcess(spec, self.log_file(name), self._say)
        return process

    def _command(self, name: str, service: str) -> list[str]:
        more = self.options.arguments.get(service, ())
        if service == batch_layer.TEMPORAL:
            return [*temporal_command(self.process_address(name), self.data_dir / name), *more]
        return [sys.executable, "-m", MODULES.get(service, f"services.{service}"), *self._arguments(name), *more]

    def _arguments(self, name: str) -> list[str]:
        if name == "collector":
            self.trace_file.parent.mkdir(parents=True, exist_ok=True)
            return ["--listen", self.process_address(name), "--db", str(self.trace_file)]
        if name == "sandbox":
            common = ["--listen", self.process_address(name)]
            if self.played_by == "canned text":
                return [*common, "--instant"]
            model = next(iter(local_models(self._catalog)))
            return [*common, "--inference", self._address_for_services("inference"), "--model", model]
        return []

    def _env(self, name: str, service: str) -> dict[str, str]:
        folder = self.data_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        models = str(self.options.models_dir.resolve())
        catalog = str(self.data_dir / "catalog.yaml")
        env = {
            **(SHARED_CORES if service == "orchestrator" and local_models(self._catalog) else {}),
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
        # The batch service and its worker read the same settings.
        prefix = f"TENTH_{service.partition('-')[0].upper()}_"
        if service in (batch_layer.SERVICE, batch_layer.WORKER):
            env.update(batch_environment(self.address(batch_layer.TEMPORAL), self.data_dir))
        if service in ("router", "compressor", "inference", "ledger"):
            env[prefix + "CATALOG_FILE"] = catalog
        if service in ("cache", "compressor", "inference"):
            env[prefix + "MODELS_DIR"] = models
        for one, setting, name_of_file in (
            ("cache", "NAMESPACES_FILE", "namespaces.yaml"),
            ("router", "RULES_FILE", "routing.yaml"),
        ):
            file = self.options.deploy_dir / name_of_file
            if service == one and file.is_file():
                # Not a copy: the running service takes what is changed there.
                env[prefix + setting] = str(file.resolve())
        for other in _CALLS.get(service, ()):
            if self._names(other):
                env[f"{prefix}{other.upper()}_ADDRESS"] = self._address_for_services(other)
        if service == "inference":
            env[prefix + "THREADS"] = str(INFERENCE_THREADS)
            if name != service:  # Replicas share the host's name; each is a node of its own.
                env[prefix + "NODE"] = name
        if service == "inference" and self.played_providers:
            env[prefix + "SANDBOX_URL"] = f"http://{self.address('sandbox')}/v1"
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
    "orchestrator": ("cache", "router", "compressor", "inference", "ledger", "batch"),
    "router": ("inference",),
    "cache": ("inference",),
    "compressor": ("cache", "inference"),
    "inference": ("ledger",),
    "batch-worker": ("orchestrator", "inference", "ledger"),
}
"""Whose address each service is given."""
