"""Rendezvous hashing and channel options: what needs no connection."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.channel import MeshChannel, connect, rendezvous, routing_key
from mesh.connections import channel_options
from mesh.errors import TenthError
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry

REPLICAS = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=8, unique=True)


@settings(deadline=None)  # A shared machine pauses; the property is no question of time.
@given(st.text(max_size=40), REPLICAS, st.randoms())
def test_the_order_of_replicas_does_not_matter(key: str, replicas: list[str], random: object) -> None:
    shuffled = sorted(replicas, key=lambda _: random.random())  # type: ignore[attr-defined]  # hypothesis types it as object
    assert rendezvous(key, replicas) == rendezvous(key, shuffled)


@settings(deadline=None)  # A shared machine pauses; the property is no question of time.
@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), REPLICAS, st.data())
def test_removing_a_replica_moves_only_its_keys(keys: list[str], replicas: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(replicas))
    rest = [replica for replica in replicas if replica != gone]
    for key in keys:
        owner = rendezvous(key, replicas)
        assert rendezvous(key, rest) == owner or owner == gone


def test_keys_spread_evenly() -> None:
    replicas = [f"10.0.0.{n}:7101" for n in range(4)]
    counts = dict.fromkeys(replicas, 0)
    for number in range(4000):
        counts[rendezvous(f"key-{number}", replicas)] += 1
    assert all(850 < count < 1150 for count in counts.values())


def test_retries_are_data() -> None:
    options = dict(channel_options(MeshSettings(), [("a.B", "Get"), ("a.B", "List")]))
    config = json.loads(options["grpc.service_config"])
    (method,) = config["methodConfig"]
    assert method["name"] == [{"service": "a.B", "method": "Get"}, {"service": "a.B", "method": "List"}]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert "methodConfig" not in json.loads(dict(channel_options(MeshSettings(), []))["grpc.service_config"])


@pytest.mark.parametrize("target", ["", " , ", "dns:///cache", "dns:///cache:http"])
async def test_a_sharded_target_without_addresses_is_refused_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        connect(target, MeshSettings(), memory_telemetry()[0], sharded=True)


async def picked(channel: MeshChannel, key: str) -> grpc.aio.Channel:
    with routing_key(key):
        return await channel.connection()


async def test_a_key_has_one_replica_and_keyless_calls_take_turns() -> None:
    async with connect(
        "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", MeshSettings(), memory_telemetry()[0], sharded=True
    ) as it:
        assert len({await picked(it, "k") for _ in range(10)}) == 1
        assert len({await picked(it, f"k{n}") for n in range(50)}) == 3
        assert len({await it.connection() for _ in range(3)}) == 3


async def test_a_sharded_name_is_resolved_once_for_many_first_calls() -> None:
    async with connect("dns:///localhost:7999", MeshSettings(), memory_telemetry()[0], sharded=True) as it:
        assert len(set(await asyncio.gather(*(picked(it, "k") for _ in range(20))))) == 1


async def test_a_name_without_addresses_is_unavailable() -> None:
    async with connect("dns:///no.such.name.invalid:1", MeshSettings(), memory_telemetry()[0], sharded=True) as it:
        with pytest.raises(TenthError) as caught:
            await it.connection()
        assert caught.value.code.name == "UNAVAILABLE"
