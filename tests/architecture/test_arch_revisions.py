"""A service of the previous proto revision talks to the new one, in both directions, over a real socket.

The previous revision is made at run time from the current descriptors: every message of ``tenth.*`` loses its last
plain field (it was added since) and has one that the current revision no longer knows (it was removed since). Every
RPC of every service is then called: an old caller against the real server of today, and today's stubs, through the
mesh's own channel, against an old server.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor

from mesh.testing import dial, memory_telemetry, running

ROOT = Path(__file__).resolve().parents[2]
RETIRED = "retired_note"
DEEPEST = 5

F = FieldDescriptor
WHOLE = (F.CPPTYPE_INT32, F.CPPTYPE_INT64, F.CPPTYPE_UINT32, F.CPPTYPE_UINT64)


def services() -> dict[str, ServiceDescriptor]:
    """Every service of the contracts, by full name."""
    found: dict[str, ServiceDescriptor] = {}
    for path in sorted((ROOT / "gen").rglob("*_pb2.py")):
        name = ".".join(path.relative_to(ROOT / "gen").with_suffix("").parts)
        described: FileDescriptor = importlib.import_module(name).DESCRIPTOR
        found |= {service.full_name: service for service in described.services_by_name.values()}
    return found


SERVICES = services()


def previous_revision() -> descriptor_pool.DescriptorPool:
    """The contracts as they were one revision ago."""
    pool = descriptor_pool.DescriptorPool()
    done: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in done:
            return
        done.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        if proto.package.startswith("tenth."):
            for message in proto.message_type:
                age(message)
        pool.Add(proto)

    for service in SERVICES.values():
        add(service.file)
    return pool


def age(message: descriptor_pb2.DescriptorProto) -> None:
    """Take the last plain field away, add a retired one; the same for nested messages."""
    if message.options.map_entry:
        return
    plain = [field for field in message.field if not field.HasField("oneof_index")]
    if len(message.field) > 1 and plain:
        message.field.remove(plain[-1])
    number = max((field.number for field in message.field), default=0) + 500
    message.field.add(
        name=RETIRED,
        number=number,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    for nested in message.nested_type:
        age(nested)


OLD = previous_revision()


def old_class(name: str) -> Any:
    return message_factory.GetMessageClass(OLD.FindMessageTypeByName(name))


def fill(message: Any, depth: int = 0) -> Any:
    """Set every field, one member of each oneof, to something that is not its default."""
    chosen: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None:
            if oneof.name in chosen:
                continue
            chosen.add(oneof.name)
        if field.message_type is not None:
            fill_message(message, field, depth)
        elif field.is_repeated:
            getattr(message, field.name).append(scalar(field))
        else:
            setattr(message, field.name, scalar(field))
    return message


def filled(message_class: Any) -> Any:
    return fill(message_class())


def fill_message(message: Any, field: FieldDescriptor, depth: int) -> None:
    assert field.message_type is not None
    target = getattr(message, field.name)
    if field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        if value.message_type is None:
            target["key"] = scalar(value)
        elif depth < DEEPEST:
            fill(target["key"], depth + 1)
    elif field.is_repeated:
        if depth < DEEPEST:
            fill(target.add(), depth + 1)
    else:
        target.SetInParent()
        if depth < DEEPEST:
            fill(target, depth + 1)


def scalar(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.type == F.TYPE_BYTES:
        return b"bytes"
    if field.cpp_type in WHOLE:
        return 7
    return {F.CPPTYPE_STRING: "text", F.CPPTYPE_BOOL: True}.get(field.cpp_type, 0.5)


def agree(left: Any, right: Any) -> int:
    """Assert that what both revisions know is equal; returns how many set values were compared."""
    compared = 0
    theirs = right.DESCRIPTOR.fields_by_name
    for field in left.DESCRIPTOR.fields:
        if field.name not in theirs:
            continue
        mine, other = getattr(left, field.name), getattr(right, field.name)
        where = f"{left.DESCRIPTOR.full_name}.{field.name}"
        if field.message_type is None:
            assert (list(mine) == list(other)) if field.is_repeated else mine == other, where
            compared += 1
        elif field.message_type.GetOptions().map_entry:
            assert set(mine) == set(other), where
        elif field.is_repeated:
            assert len(mine) == len(other), where
            compared += sum(agree(a, b) for a, b in zip(mine, other, strict=True))
        else:
            assert left.HasField(field.name) == right.HasField(field.name), where
            if left.HasField(field.name):
                compared += agree(mine, other)
    return compared


@dataclass(frozen=True, slots=True)
class Seen:
    """What the servers of one test received, by method."""

    requests: dict[str, list[Any]]


def handler(method: MethodDescriptor, answer: Callable[[], Any], seen: Seen) -> Callable[..., Any]:
    """A servicer's method: keeps what it gets, answers with one message, twice when it streams."""

    async def receive(request: Any) -> None:
        kept = seen.requests.setdefault(method.name, [])
        if method.client_streaming:
            kept.extend([item async for item in request])
        else:
            kept.append(request)

    async def unary(*arguments: Any) -> Any:
        await receive(arguments[-2])
        return answer()

    async def stream(*arguments: Any) -> AsyncIterator[Any]:
        await receive(arguments[-2])
        yield answer()
        yield answer()

    return stream if method.server_streaming else unary


def kind(method: MethodDescriptor) -> str:
    sides = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if streams else "unary" for streams in sides)


async def call(multicallable: Any, method: MethodDescriptor, request: Any) -> list[Any]:
    async def requests() -> AsyncIterator[Any]:
        yield request

    sent = requests() if method.client_streaming else request
    if method.server_streaming:
        return [item async for item in multicallable(sent, timeout=20)]
    return [await multicallable(sent, timeout=20)]


def current_class(descriptor: Descriptor) -> Any:
    return message_factory.GetMessageClass(descriptor)


def check(method: MethodDescriptor, seen: Seen, sent: Any, answers: list[Any], answered: Any) -> None:
    assert len(answers) == (2 if method.server_streaming else 1)
    (received,) = seen.requests[method.name]
    compared = agree(sent, received) + agree(received, sent)
    for answer in answers:
        compared += agree(answer, answered)
    # A message with one field keeps it, so anything but an empty pair of messages is compared.
    if len(method.input_type.fields) + len(method.output_type.fields) > 2:
        assert compared > 0, method.full_name


@pytest.mark.parametrize("name", sorted(SERVICES))
async def test_an_old_caller_talks_to_the_server_of_today(name: str, tmp_path: Path) -> None:
    service = SERVICES[name]
    seen = Seen({})
    methods = {
        method.name: handler(method, partial(filled, current_class(method.output_type)), seen)
        for method in service.methods
    }
    servicer = type("Servicer", (), methods)()
    stubs = importlib.import_module(service.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")
    register = getattr(stubs, f"add_{service.name}Servicer_to_server")
    async with running(register, servicer, name, tmp_path) as address, dial(address) as channel:
        for method in service.methods:
            request_class = old_class(method.input_type.full_name)
            response_class = old_class(method.output_type.full_name)
            multicallable = getattr(channel, kind(method))(
                f"/{name}/{method.name}",
                request_serializer=request_class.SerializeToString,
                response_deserializer=response_class.FromString,
            )
            sent = fill(request_class())
            answers = await call(multicallable, method, sent)
            check(method, seen, sent, answers, fill(current_class(method.output_type)()))
            if RETIRED in request_class.DESCRIPTOR.fields_by_name:
                # What the server of today does not know, it still passes on.
                (received,) = seen.requests[method.name]
                assert getattr(request_class.FromString(received.SerializeToString()), RETIRED) == "text"


@pytest.mark.parametrize("name", sorted(SERVICES))
async def test_the_stubs_of_today_talk_to_an_old_server(name: str) -> None:
    service = SERVICES[name]
    seen = Seen({})
    handlers: dict[str, Any] = {}
    for method in service.methods:
        request_class = old_class(method.input_type.full_name)
        response_class = old_class(method.output_type.full_name)
        handlers[method.name] = getattr(grpc, f"{kind(method)}_rpc_method_handler")(
            handler(method, partial(filled, response_class), seen),
            request_deserializer=request_class.FromString,
            response_serializer=response_class.SerializeToString,
        )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stubs = importlib.import_module(service.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")
    telemetry, _ = memory_telemetry()
    try:
        async with dial(f"127.0.0.1:{port}", telemetry=telemetry) as channel:
            stub = getattr(stubs, f"{service.name}Stub")(channel)
            for method in service.methods:
                sent = fill(current_class(method.input_type)())
                answers = await call(getattr(stub, method.name), method, sent)
                check(method, seen, sent, answers, fill(old_class(method.output_type.full_name)()))
    finally:
        await server.stop(None)


async def test_the_revisions_really_differ() -> None:
    name = "tenth.cache.v1.LookupCompletionRequest"
    old = set(OLD.FindMessageTypeByName(name).fields_by_name)
    new = set(SERVICES["tenth.cache.v1.CacheService"].methods_by_name["LookupCompletion"].input_type.fields_by_name)
    assert old - new == {RETIRED}
    assert len(new - old) == 1
