"""What the supervisor decides and writes before it starts anything: ports, callers, catalogue, private files."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HOST = "127.0.0.1"
PORTS = {
    "collector": 4317,
    "orchestrator": 7100,
    "cache": 7101,
    "router": 7102,
    "compressor": 7103,
    "inference": 7104,
    "ledger": 7105,
    "batch": 7106,
    "batch-worker": 7107,
    "sandbox": 7190,
    "temporal": 7233,
}
LOCAL_CALLER = "local"
LOCAL_TENANT = "demo"


def local_models(catalog: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The catalogue's models that run in the inference service's own process, by name."""
    local = local_providers(catalog)
    return {name: entry for name, entry in catalog.get("models", {}).items() if entry.get("provider") in local}


def local_providers(catalog: Mapping[str, Any]) -> set[str]:
    """Their providers."""
    return {name for name, entry in catalog.get("providers", {}).items() if entry.get("backend") == "vllm"}


def missing_local_model(deploy_dir: Path, models_dir: Path) -> str:
    """Why the catalogue's local model cannot run here, in words; empty when it can (or the catalogue has none)."""
    catalog = read_yaml(deploy_dir / "catalog.yaml")
    entries = local_models(catalog).values()
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
        found[name] = next(port for port in candidates if is_free(port))
    return found


def is_free(port: int) -> bool:
    """True when nobody listens on a loopback port."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that linger do not take the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def fixed_ports(names: Sequence[str]) -> dict[str, int]:
    """The usual port for each name."""
    ports: dict[str, int] = {}
    for name in names:
        service = service_of(name)
        number = name.removeprefix(service).removeprefix("-")
        # Replicas after the first stand a hundred ports further on: 7101, 7201, ...
        ports[name] = PORTS[service] + 100 * (int(number or 1) - 1)
    return ports


def service_of(name: str) -> str:
    """The service of a process: "cache" of "cache-2", "batch-worker" of itself."""
    service, _, number = name.rpartition("-")
    return service if number.isdigit() else name


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
    models = set(local_models(catalog))
    for name in local_providers(catalog):
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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises FileNotFoundError with advice."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is absent: run this in Tenth's repository, or name its deploy directory with --deploy-dir"
        ) from None
    return dict(content or {})


def kept(path: Path, read: Callable[[str], str]) -> str:
    """What ``read`` finds in a file of an earlier run; empty when there is none."""
    try:
        return read(path.read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return ""
