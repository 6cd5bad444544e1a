"""What the supervisor writes and decides before it starts anything, and the demo's workload."""

from __future__ import annotations

import hashlib
import json
import socket
import stat
from collections import Counter
from pathlib import Path

import pytest
import yaml

from formats.openai import read_jsonl
from services.batch.settings import WorkerSettings
from services.cache.namespaces import Mode, NamespacePolicy, Namespaces, parse_namespaces
from tenth_client import batch_layer
from tenth_client.batch_layer import PARTS, missing_batch_layer
from tenth_client.cache_files import read_items
from tenth_client.connection import Connection, Tls, find, target
from tenth_client.demo import batch as demo_batch
from tenth_client.demo import table, workload
from tenth_client.local import (
    PORTS,
    fixed_ports,
    free_ports,
    missing_local_model,
    service_of,
    with_local_caller,
    without_local_model,
)
from tenth_client.processes import StartError
from tenth_client.rpc import replicas
from tenth_client.up import Mesh, MeshOptions

CATALOG = {
    "providers": {"local": {"backend": "vllm"}, "openai": {"backend": "openai", "key_env": "OPENAI_API_KEY"}},
    "routing": {"default_tier": "medium"},
    "models": {
        "tiny": {"provider": "local", "provider_model": "tiny-folder"},
        "mini": {"provider": "openai", "provider_model": "mini"},
    },
    "prices": [{"model": "tiny"}, {"model": "mini"}, {"model": "cpu"}],
}


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "catalog.yaml").write_text(yaml.safe_dump(CATALOG))
    (folder / "callers.yaml").write_text(yaml.safe_dump({"callers": [], "services": {"a": ["*"]}, "tenants": []}))
    return folder


def prepared(deploy: Path, environ: dict[str, str] | None = None, **options: object) -> Mesh:
    made = MeshOptions(data_dir=deploy.parent / "data", deploy_dir=deploy, free_ports=True, **options)  # type: ignore[arg-type]  # the tests' own
    mesh = Mesh(made, environ=environ or {})
    mesh._prepare()
    return mesh


def test_local_files(deploy: Path) -> None:
    mesh = prepared(deploy)
    saved = deploy.parent / "data" / "client.json"
    content = json.loads(saved.read_text())
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert stat.S_IMODE((deploy.parent / "data" / "identity.key").stat().st_mode) == 0o600
    assert content == {"addresses": mesh.addresses, "api_key": mesh.api_key}
    callers = yaml.safe_load((deploy.parent / "data" / "callers.yaml").read_text())
    assert callers["services"] == {"a": ["*"]}
    (local,) = callers["callers"]
    assert local["key_sha256"] == hashlib.sha256(mesh.api_key.encode()).hexdigest()
    assert local["may_assert_user"] is True
    assert mesh.api_key not in (deploy.parent / "data" / "callers.yaml").read_text()
    again = prepared(deploy)
    assert again.api_key == mesh.api_key, "a restart must not lock clients out"


def test_another_callers_entry_stays(deploy: Path) -> None:
    kept = {"name": "desk", "tenant_id": "acme", "may_call": []}
    callers = with_local_caller({"callers": [kept, {"name": "local", "may_call": []}]}, "key")
    assert [caller["name"] for caller in callers["callers"]] == ["desk", "local"]


def test_without_local_model() -> None:
    catalog = json.loads(json.dumps(CATALOG))
    without_local_model(catalog)
    assert set(catalog["providers"]) == {"openai"}
    assert set(catalog["models"]) == {"mini"}
    assert [row["model"] for row in catalog["prices"]] == ["mini", "cpu"]


@pytest.mark.parametrize(
    ("environ", "sandbox", "played"),
    [({}, "auto", ("openai",)), ({"OPENAI_API_KEY": "k"}, "auto", ()), ({}, "off", ()), ({}, "instant", ("openai",))],
)
def test_who_is_played(deploy: Path, environ: dict[str, str], sandbox: str, played: tuple[str, ...]) -> None:
    mesh = prepared(deploy, environ, sandbox=sandbox)
    assert mesh.played_providers == played
    assert ("sandbox" in mesh.addresses) is bool(played)
    assert ("TENTH_INFERENCE_SANDBOX_URL" in mesh._env("inference", "inference")) is bool(played)


def test_environment_of_a_service(deploy: Path) -> None:
    mesh = prepared(deploy, {"PATH": "/bin"}, replicas={"cache": 2, "orchestrator": 2}, env={"cache": {"A": "1"}})
    first, second = mesh.process_address("cache-1"), mesh.process_address("cache-2")
    orchestrator = mesh._env("orchestrator-2", "orchestrator")
    assert orchestrator["TENTH_ORCHESTRATOR_CACHE_ADDRESS"] == f"{first},{second}", "sharded: a plain list"
    assert orchestrator["TENTH_LISTEN"] == mesh.process_address("orchestrator-2")
    assert orchestrator["TENTH_DATA_DIR"].endswith("/orchestrator-2")
    assert orchestrator["OMP_NUM_THREADS"] == "1"
    assert orchestrator["TENTH_OTLP_ENDPOINT"] == mesh.address("collector")
    assert orchestrator["PATH"] == "/bin"
    assert mesh.address("orchestrator").startswith("ipv4:127.0.0.1:")
    assert mesh._env("cache-1", "cache")["A"] == "1"
    assert set(mesh.addresses) == {
        "collector",
        "ledger",
        "inference",
        "cache",
        "sandbox",
        "router",
        "compressor",
        "orchestrator",
    }


def test_without_being_asked_no_part_of_the_batch_layer_runs(deploy: Path) -> None:
    mesh = prepared(deploy)
    assert not set(PARTS) & set(mesh.addresses)
    assert "TENTH_ORCHESTRATOR_BATCH_ADDRESS" not in mesh._env("orchestrator", "orchestrator")


@pytest.mark.skipif(bool(missing_batch_layer()), reason=missing_batch_layer())
def test_environment_of_the_batch_layer(deploy: Path) -> None:
    mesh = prepared(deploy, {"PATH": "/bin"}, batch=True, replicas={"batch-worker": 2})
    assert set(PARTS) <= set(mesh.addresses)
    orchestrator = mesh._env("orchestrator", "orchestrator")
    assert orchestrator["TENTH_ORCHESTRATOR_BATCH_ADDRESS"] == mesh.address("batch")
    service, worker = mesh._env("batch", "batch"), mesh._env("batch-worker-2", "batch-worker")
    for name in ("TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "STORE_URL"):
        assert service[f"TENTH_BATCH_{name}"] == worker[f"TENTH_BATCH_{name}"]
    assert service["TENTH_BATCH_TEMPORAL_ADDRESS"] == mesh.address("temporal")
    assert Path(service["TENTH_BATCH_STORE_URL"]).is_relative_to(mesh.data_dir)
    for name in ("orchestrator", "inference", "ledger"):
        assert worker[f"TENTH_BATCH_{name.upper()}_ADDRESS"] == mesh.address(name)
    assert worker["TENTH_LISTEN"] == mesh.process_address("batch-worker-2")
    known = {f"TENTH_BATCH_{name.upper()}" for name in WorkerSettings.model_fields}
    assert {name for name in worker if name.startswith("TENTH_BATCH_")} <= known
    assert mesh._command("batch-worker-2", "batch-worker")[-2:] == ["-m", "services.batch.worker"]
    command = mesh._command("temporal", "temporal")
    assert command[command.index("--port") + 1] == mesh.address("temporal").rpartition(":")[2]
    assert str(mesh.data_dir / "temporal" / "temporal.db") in command


def test_a_mesh_that_cannot_have_its_batch_layer_says_why(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_layer, "temporal_binary", lambda: None)
    with pytest.raises(StartError, match=r"no batch layer: the command `temporal` is absent.*batch-embedded"):
        prepared(deploy, batch=True)


def test_processes_and_services() -> None:
    assert [service_of(name) for name in ("cache", "cache-2", "batch-worker", "batch-worker-12")] == [
        "cache", "cache", "batch-worker", "batch-worker",
    ]  # fmt: skip
    ports = fixed_ports(["batch", "batch-worker", "batch-worker-1", "batch-worker-2", "cache-3"])
    assert list(ports.values()) == [7106, 7107, 7107, 7207, 7301]
    assert len(set(PORTS.values())) == len(PORTS)


def test_the_cache_reads_the_namespaces_file_of_the_deploy_folder(deploy: Path) -> None:
    mesh = prepared(deploy)
    assert "TENTH_CACHE_NAMESPACES_FILE" not in mesh._env("cache", "cache"), "there is none"
    (deploy / "namespaces.yaml").write_text("tenants: {}")
    assert mesh._env("cache", "cache")["TENTH_CACHE_NAMESPACES_FILE"] == str(deploy / "namespaces.yaml")
    assert not any("NAMESPACES" in name for name in mesh._env("router", "router"))


def test_the_router_reads_the_rules_file_of_the_deploy_folder(deploy: Path) -> None:
    mesh = prepared(deploy)
    assert "TENTH_ROUTER_RULES_FILE" not in mesh._env("router", "router"), "there is none"
    (deploy / "routing.yaml").write_text("rules: []")
    assert mesh._env("router", "router")["TENTH_ROUTER_RULES_FILE"] == str(deploy / "routing.yaml")
    assert not any("RULES" in name for name in mesh._env("cache", "cache"))


def test_missing_local_model(deploy: Path, tmp_path: Path) -> None:
    reason = missing_local_model(deploy, tmp_path)
    assert reason
    without = {**CATALOG, "models": {}}
    (deploy / "catalog.yaml").write_text(yaml.safe_dump(without))
    assert missing_local_model(deploy, tmp_path) == ""


def test_missing_deploy_folder_is_named(tmp_path: Path) -> None:
    mesh = Mesh(MeshOptions(data_dir=tmp_path / "data", deploy_dir=tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/catalog\.yaml is absent"):
        mesh._prepare()


def test_free_ports_differ() -> None:
    ports = free_ports([f"s{number}" for number in range(20)])
    assert len(set(ports.values())) == 20
    assert all(port < 32_768 for port in ports.values())


def test_a_port_that_is_taken_is_named(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setitem(PORTS, "router", port)
        mesh = Mesh(MeshOptions(data_dir=deploy.parent / "data", deploy_dir=deploy, stages=(("router",),)), environ={})
        with pytest.raises(StartError, match=f"port {port} of router is taken"):
            mesh._prepare()


def test_wrong_sandbox_mode() -> None:
    with pytest.raises(ValueError, match="sandbox"):
        Mesh(MeshOptions(sandbox="loud"))


def test_connection_from_flags_environment_and_file(tmp_path: Path) -> None:
    (tmp_path / "client.json").write_text(
        json.dumps({"addresses": {"orchestrator": "a:1", "ledger": "a:2"}, "api_key": "k"})
    )
    saved = find(data_dir=tmp_path, environ={})
    assert (saved.address("orchestrator"), saved.address("ledger"), saved.api_key) == ("a:1", "a:2", "k")
    environ = {"TENTH_ADDRESS": "b:1", "TENTH_LEDGER_ADDRESS": "b:2", "TENTH_API_KEY": "e", "TENTH_TLS_CA_FILE": "ca"}
    from_env = find(data_dir=tmp_path, environ=environ)
    assert (from_env.address("orchestrator"), from_env.address("ledger"), from_env.api_key) == ("b:1", "b:2", "e")
    assert from_env.tls == Tls(Path("ca"))
    from_flags = find(address="c:1", api_key="f", data_dir=tmp_path, environ=environ)
    assert (from_flags.address("orchestrator"), from_flags.api_key) == ("c:1", "f")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_connection_is_said_clearly(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "client.json").write_text(content)
    with pytest.raises(LookupError, match=r"client\.json"):
        find(data_dir=tmp_path, environ={})


def test_unknown_address_names_the_variable() -> None:
    with pytest.raises(LookupError, match="TENTH_LEDGER_ADDRESS"):
        Connection({"orchestrator": "a:1"}).address("ledger")


@pytest.mark.parametrize(
    ("address", "wanted", "single"),
    [
        ("a:1", "a:1", ["a:1"]),
        ("1.1.1.1:1,1.1.1.2:2", "ipv4:1.1.1.1:1,1.1.1.2:2", ["1.1.1.1:1", "1.1.1.2:2"]),
        ("ipv4:1.1.1.1:1,1.1.1.2:2", "ipv4:1.1.1.1:1,1.1.1.2:2", ["1.1.1.1:1", "1.1.1.2:2"]),
        ("dns:///orchestrator:7100", "dns:///orchestrator:7100", ["dns:///orchestrator:7100"]),
    ],
)
def test_targets(address: str, wanted: str, single: list[str]) -> None:
    assert target(address) == wanted
    assert replicas(address) == single


def test_workload() -> None:
    bodies = workload.bodies()
    assert len(bodies) == 200
    assert bodies == workload.bodies(), "the same order every time"
    korean = sum(body["tenth"]["tags"]["language"] == "ko" for body in bodies)
    assert 60 <= korean <= 75
    asked = [(body["messages"], body["tenth"].get("retrieved_chunks")) for body in bodies]
    seen = Counter(json.dumps(what, sort_keys=True) for what in asked)
    assert sum(count - 1 for count in seen.values()) == 22, "exact repeats; ten more come with a greeting"
    assert all(request.sampling.max_output_tokens == workload.MAX_TOKENS for request in workload.requests())
    users = [body["tenth"]["user_id"] for body in bodies if body["tenth"]["tags"]["application"] == "support"]
    assert len(set(users)) == len(users), "every customer is another"
    assert all("user_id" in body["tenth"] for body in bodies if body["tenth"].get("namespace")), "the help centre's"
    assert sum("user_id" not in body["tenth"] for body in bodies) > 80, "colleagues' tools"


def test_the_demos_batch_is_one_and_repeats_itself() -> None:
    lines = list(demo_batch.lines(24))
    read = read_jsonl("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert len({line.custom_id for line in read}) == len(lines) == 16
    assert len({line.request.messages[0].parts[0].text for line in read}) == 12
    assert demo_batch.real_providers(CATALOG, ()) is True
    assert demo_batch.real_providers(CATALOG, ("openai",)) is False
    assert set(demo_batch.ENVIRONMENT) <= {f"TENTH_BATCH_{name.upper()}" for name in WorkerSettings.model_fields}


def test_the_help_centre_is_imported_under_the_circumstances_of_its_questions(tmp_path: Path) -> None:
    lines = workload.help_centre()
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = [item.message.pair for item in read_items(str(tmp_path / "faq.jsonl"))]
    requests = [request for request in workload.requests() if request.namespace == workload.HELP_CENTRE]
    assert {pair.request.messages[0].parts[0].text for pair in pairs} == {
        request.messages[0].parts[0].text for request in requests
    }
    for pair in pairs:
        assert pair.request.namespace == workload.HELP_CENTRE
        assert pair.request.sampling == requests[0].sampling
        assert not pair.request.user_id
        assert 0 < pair.completion.usage.output_token_count <= workload.MAX_TOKENS
    imported = {pair.request.messages[-1].parts[0].text for pair in pairs}
    customers = {request.messages[-1].parts[0].text for request in requests}
    assert not imported & customers, "customers ask in other words"
    answers = workload.right_answers()
    assert customers <= set(answers)
    assert {answers[question] for question in customers} <= {line["answer"] for line in lines}
    assert answers["Hello, do you ship to Canada?"].startswith("Yes. We ship to Canada")


def test_the_rules_of_the_demo_make_its_help_centre_a_curated_set() -> None:
    rules = parse_namespaces(workload.rules(), "namespaces.yaml", NamespacePolicy())
    namespaces = Namespaces(NamespacePolicy(), lambda: rules)
    assert namespaces.of("local", workload.HELP_CENTRE).mode is Mode.FAQ
    assert namespaces.of("local", "default") == NamespacePolicy()


def test_the_waterfall_is_written_into_the_page(tmp_path: Path) -> None:
    report = {
        "requests": 2,
        "failed": 0,
        "baseline_models": ["big"],
        "baseline_nano_usd": 2_000_000_000,
        "savings_nano_usd": {"cache": 500_000_000, "prompt_cache": -1_000_000},
        "overhead_nano_usd": 1,
        "actual_nano_usd": 1_501_000_001,
        "cache_hits": 1,
        "hit_kinds": {"exact": 1},
        "latency_ms": {"p50": 1234.0, "p95": 2000.0},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nafter\n")
    assert table.main(["--report", str(tmp_path / "report.json"), str(page)]) == 0
    text = page.read_text()
    assert "| - cache | -0.500000 | -25.0% |" in text
    assert "| = actual | 1.501000 | 75.1% |" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- demo:begin -->\n")
    page.write_text("no block")
    assert table.main(["--report", str(tmp_path / "report.json"), str(page)]) == 1
