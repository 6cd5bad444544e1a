"""The deployment that the end-to-end benchmark starts: catalogue, one tenant and caller per arm, the cache's rules."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.endtoend_rows import STRONG
from sandbox.recorded import Speed

HERE = Path(__file__).parent
DEPLOY = HERE.parent / "deploy"
SPEEDS: Mapping[str, Speed] = {
    "gpt-4-1106-preview": Speed(0.6, 30.0),
    "mixtral-8x7b-instruct": Speed(0.3, 90.0),
    "gpt-4o-mini": Speed(0.4, 90.0),
    "gpt-5-nano": Speed(1.0, 150.0),
    "claude-opus-5": Speed(1.2, 70.0),
}
"""Modelled, of the size that such models had: no set records them for these requests."""
SUPPORT, JOBS = "help-centre", "jobs"
"""Namespaces of the cache."""
_MAY_CALL = ("tenth.orchestrator.v1.OrchestratorService/*", "tenth.batch.v1.BatchService/*")


def write(folder: Path, catalog: str, tenants: Sequence[str]) -> dict[str, str]:
    """Write the deploy directory; returns an API key per tenant."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "catalog.yaml").write_text((HERE / f"endtoend_catalog_{catalog}.yaml").read_text("utf-8"), "utf-8")
    keys = {tenant: secrets.token_urlsafe(24) for tenant in tenants}
    callers: dict[str, Any] = yaml.safe_load((DEPLOY / "callers.yaml").read_text("utf-8"))
    callers["callers"] = [
        {
            "name": tenant,
            "tenant_id": tenant,
            "key_sha256": hashlib.sha256(key.encode()).hexdigest(),
            "may_assert_user": True,
            "may_call": list(_MAY_CALL),
        }
        for tenant, key in keys.items()
    ]
    budget = {"name": "monthly", "window": "month", "time_zone": "Asia/Seoul", "limit_usd": "10000", "hard": True}
    callers["tenants"] = [
        {"tenant_id": tenant, "baseline_model": STRONG[catalog], "control_share": "0", "budgets": [budget]}
        for tenant in ("demo", *tenants)
    ]
    (folder / "callers.yaml").write_text(yaml.safe_dump(callers, sort_keys=False), "utf-8")
    # The help centre's answers are approved texts about nobody: one customer's answer is every customer's at once.
    rules = {"tenants": {"*": {SUPPORT: {"mode": "faq", "sharing_user_count": 1, "ttl_seconds": 86_400}}}}
    (folder / "namespaces.yaml").write_text(yaml.safe_dump(rules, sort_keys=False), "utf-8")
    return keys


def without_keys(catalog: str) -> dict[str, str]:
    """This process's environment without any provider's key: the sandbox must play them all."""
    content = yaml.safe_load((HERE / f"endtoend_catalog_{catalog}.yaml").read_text("utf-8"))
    keys = {str(entry["key_env"]) for entry in content["providers"].values()}
    return {name: value for name, value in os.environ.items() if name not in keys}
