"""Times as people write them on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from google.protobuf.timestamp_pb2 import Timestamp


def parse_time(text: str, option: str, zone: tzinfo = UTC) -> Timestamp:
    """A date or time of ISO 8601, in ``zone`` where it names none. Raises ValueError naming the option."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no time; write 2026-11-22 or 2026-11-22T09:00:00") from None
    result = Timestamp()
    result.FromDatetime((moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC))
    return result
