"""A caller that is called as a service is; replicas whose name was never looked up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from mesh.auth import IDENTITY_KEY, Authenticator, Identity, Signer
from mesh.channel import connect
from mesh.errors import Code, TenthError
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry

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


async def test_the_replicas_behind_a_name_are_known_before_the_first_call() -> None:
    telemetry, _ = memory_telemetry("test")
    async with connect("dns:///localhost:7101", MeshSettings(), telemetry, sharded=True) as channel:
        assert all(replica.endswith(":7101") for replica in await channel.replicas())
        assert await channel.replicas()
    async with connect("dns:///nowhere.invalid:7101", MeshSettings(), telemetry, sharded=True) as channel:
        with pytest.raises(TenthError, match="has no address"):
            await channel.replicas()
    telemetry.close()


async def test_a_service_that_is_away_does_not_give_its_address_away() -> None:
    telemetry, _ = memory_telemetry("test")
    async with connect("127.0.0.1:1", MeshSettings(), telemetry) as channel:
        ask = channel.unary_unary("/tenth.cache.v1.CacheService/Embed", lambda _: b"", bytes)
        follow = channel.unary_stream("/tenth.cache.v1.CacheService/FollowCompletion", lambda _: b"", bytes)
        for answer in (ask(b"", timeout=5), anext(follow(b"", timeout=5))):
            with pytest.raises(TenthError) as raised:
                await answer
            assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "UNREACHABLE")
            assert raised.value.message == "tenth.cache.v1.CacheService does not answer"
    telemetry.close()
