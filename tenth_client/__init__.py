"""What a backend service installs to call Tenth: a typed async client, and the ``tenth`` command."""

from formats.openai import FormatError, completion_request, read_jsonl
from tenth_client.batches import Batches
from tenth_client.client import Answer, Client, StreamEvent
from tenth_client.connection import Connection, Tls
from tenth_client.errors import TenthClientError

__all__ = [
    "Answer",
    "Batches",
    "Client",
    "Connection",
    "FormatError",
    "StreamEvent",
    "TenthClientError",
    "Tls",
    "completion_request",
    "read_jsonl",
]
