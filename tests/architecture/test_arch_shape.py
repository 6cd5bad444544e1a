"""Every service has the same shape, so that knowing one is knowing all."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.name for path in (ROOT / "services").iterdir() if path.is_dir() and path.name != "__pycache__")
SERVICES = [name for name in FOLDERS if (ROOT / "services" / name / "__init__.py").is_file()]
UNITS = (
    "seconds",
    "bytes",
    "megabytes",
    "tokens",
    "count",
    "usd",
    "ratio",
    "characters",
    "entries",
    "size",
    "attempts",
    "ms",
    "minute",
    "thousand",
)


def test_only_a_place_that_says_so_has_no_code() -> None:
    for name in set(FOLDERS) - set(SERVICES):
        assert (ROOT / "services" / name / "README.md").is_file(), f"services/{name} holds neither code nor a README"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_common_files(service: str) -> None:
    folder = ROOT / "services" / service
    for name in ("__main__.py", "settings.py", "servicer.py", "errors.py", "README.md"):
        assert (folder / name).is_file(), f"services/{service}/{name} is missing"
    assert (folder / "policy.py").is_file() or (folder / "flow.py").is_file(), "neither policy.py nor flow.py"


@pytest.mark.parametrize("service", SERVICES)
def test_wiring_is_short(service: str) -> None:
    """About 60 lines, imports and docstrings aside: a start-up that one can read in one breath."""
    tree = ast.parse((ROOT / "services" / service / "__main__.py").read_text())
    lines: set[int] = set()
    for node in (one for one in tree.body if not isinstance(one, ast.Import | ast.ImportFrom)):
        lines |= {part.lineno for part in ast.walk(node) if isinstance(part, ast.stmt | ast.expr | ast.arg)}
    assert len(lines) <= 70, f"services/{service}/__main__.py wires {len(lines)} lines: move work out of it"


@pytest.mark.parametrize("path", sorted(ROOT.glob("services/*/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_lives_in_it(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize("service", ["mesh", *SERVICES])
def test_settings_are_frozen_named_and_described(service: str) -> None:
    module = importlib.import_module("mesh.settings" if service == "mesh" else f"services.{service}.settings")
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseSettings) and kind.__module__ == module.__name__
    ]
    assert kinds
    for kind in kinds:
        assert kind.model_config.get("frozen"), kind
        prefix = "TENTH_" if service == "mesh" else f"TENTH_{service.upper()}_"
        assert kind.model_config.get("env_prefix") == prefix
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no description"
            if field.annotation is float:
                named = any(re.search(rf"(^|_){unit}(_|$)", name) for unit in UNITS)
                told = re.search(
                    r"0\.\.1|threshold|temperature|overlap|share|factor|multiple|ratio",
                    f"{name} {field.description}",
                    re.IGNORECASE,
                )
                assert named or told, f"{kind.__name__}.{name}: no unit"


def test_the_callers_file_names_methods_that_exist() -> None:
    import yaml

    rules = yaml.safe_load((ROOT / "deploy" / "callers.yaml").read_text())["services"]
    protos = "\n".join(path.read_text() for path in ROOT.glob("protos/**/*.proto"))
    for caller, methods in rules.items():
        for method in methods:
            service, _, name = method.rpartition("/")
            assert f"service {service.rpartition('.')[2]} {{" in protos, f"{caller}: no service {service}"
            assert name == "*" or f"rpc {name}(" in protos, f"{caller}: no method {method}"
