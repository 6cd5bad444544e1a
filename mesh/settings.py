"""Settings that every service shares, and how any settings class is loaded.

Settings are frozen and read once, in ``__main__``. Every field has a type, a unit in its name, a description and,
where one is sane, a default. Secrets come from files, never from defaults, and are never logged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class MeshSettings(BaseSettings):
    """What it takes to be a service: where to listen, whom to trust, where to send traces."""

    model_config = SettingsConfigDict(env_prefix="TENTH_", frozen=True, extra="ignore")

    listen: str = Field(default="127.0.0.1:0", description="host:port to serve on; port 0 takes a free one")
    data_dir: Path = Field(default=Path(".data"), description="Directory of this service's durable files")
    callers_file: Path | None = Field(
        default=None, description="YAML of callers and what they may call; none: nobody may call"
    )
    identity_key_file: Path | None = Field(
        default=None, description="File with the secret that signs identity between services"
    )
    otlp_endpoint: str = Field(default="", description="OTLP gRPC collector, host:port; empty: no traces are exported")
    metrics_interval_seconds: float = Field(default=15.0, gt=0, description="Time between metric exports, seconds")
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1, description="Share of new traces recorded, 0..1")
    record_content: bool = Field(default=False, description="True writes prompts and answers into spans")
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, description="Largest gRPC message, bytes")
    default_deadline_seconds: float = Field(
        default=120.0, gt=0, description="Deadline of calls that come without one, seconds"
    )
    drain_seconds: float = Field(default=10.0, ge=0, description="Time that running calls get after SIGTERM, seconds")
    unready_seconds: float = Field(
        default=0.2, ge=0, description="Time between going NOT_SERVING and refusing new calls, seconds"
    )
    reflection: bool = Field(default=True, description="Serve gRPC reflection")
    tls_cert_file: Path | None = Field(
        default=None, description="PEM certificate chain; none: plaintext (loopback, mesh sidecar)"
    )
    tls_key_file: Path | None = Field(default=None, description="PEM private key")
    tls_ca_file: Path | None = Field(
        default=None, description="PEM roots; set: servers are checked against them, and clients too (mTLS)"
    )
    tls_require_client_cert: bool = Field(
        default=True,
        description="False: a server with tls_ca_file asks for no certificate; callers use API keys over TLS",
    )
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR")


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """Read settings from the environment, or end the process naming each variable that is wrong."""
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        for problem in error.errors():
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"setting {name}: {problem['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
