"""A caller that is called as a service is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from mesh.auth import IDENTITY_KEY, Authenticator, Identity, Signer
from mesh.errors import TenthError

KEY = b"a key of at least sixteen bytes"
METHOD = "/tenth.ledger.v1.LedgerService/RecordAttempts"


@pytest.mark.parametrize("service_first", [True, False])
def test_a_caller_named_like_a_service_gets_none_of_its_grants(tmp_path: Path, service_first: bool) -> None:
    file = tmp_path / "callers.yaml"
    caller = {
        "name": "inference",
        "tenant_id": "acme",
        "key_sha256": hashlib.sha256(b"k").hexdigest(),
        "may_call": ["tenth.orchestrator.v1.OrchestratorService/*"],
    }
    granted = {"inference": ["tenth.ledger.v1.LedgerService/RecordAttempts"]}
    file.write_text(yaml.safe_dump({"callers": [caller], "services": granted}))
    authenticator = Authenticator(file, KEY)
    token = Signer(KEY, "inference").token(Identity(tenant_id="acme", caller="app"))
    for service in (service_first, not service_first):
        if service:
            assert authenticator.authenticate(METHOD, {IDENTITY_KEY: token}).service == "inference"
        else:
            with pytest.raises(TenthError, match="may not call"):
                authenticator.authenticate(METHOD, {"authorization": "Bearer k"})
