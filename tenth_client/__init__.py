"""What a backend service installs to call Tenth: a typed async client, and the ``tenth`` command."""

from tenth_client.client import Answer, Client, StreamEvent
from tenth_client.connection import Connection, Tls
from tenth_client.errors import TenthClientError
from tenth_client.openai_format import FormatError, completion_request, read_jsonl

__all__ = [
    "Answer",
    "Client",
    "Connection",
    "FormatError",
    "StreamEvent",
    "TenthClientError",
    "Tls",
    "completion_request",
    "read_jsonl",
]
