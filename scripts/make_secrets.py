"""Makes the secret files that compose.yaml mounts, where they are absent: ``python3 scripts/make_secrets.py [DIR]``.

Random ones where the mesh decides (identity key, database password, the key that signs budget alerts), empty ones where
a provider does: put the key into the file (into ``aws_credentials`` AWS's shared credentials file, where batches are
kept in S3). An existing file is never touched. Standard library only.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RANDOM = ("identity_key", "postgres_password", "alert_key")
EMPTY = ("openai_api_key", "anthropic_api_key", "gemini_api_key", "aws_credentials")


def make(directory: Path) -> list[str]:
    """Write what is absent; returns the names of the files made."""
    # The directory keeps other users of this machine out; the files must be readable to the container's user.
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = [name for name in (*RANDOM, *EMPTY) if not (directory / name).exists()]
    for name in made:
        path = directory / name
        path.write_text(secrets.token_hex(32) if name in RANDOM else "")
        path.chmod(0o644)
    return made


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "deploy" / "secrets"
    print(f"made in {target}: {', '.join(make(target)) or 'nothing, all are there'}")
