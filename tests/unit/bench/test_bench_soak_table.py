"""The soak's table says what was measured."""

from __future__ import annotations

import pytest

from bench.result import Result
from bench.soak_table import soak_table


def _result() -> Result:
    result = Result("inference_soak", quick=False, assumptions={"minutes": 30.0, "concurrency": 48})
    for name, value in {"requests": 70514, "outcome_QUEUE_FULL": 29960, "outcome_finished": 2256, "stuck": 0,
                        "unbilled_tokens": 3, "kill_9s": 4, "recovery_p50_s": 13.27}.items():  # fmt: skip
        result.add(f"soak/ours/{name}", value, "count", 70514)
    for name, value in {"rss_mb_first": 1598.2, "rss_mb_last": 1622.4, "slope_mb_per_hour": 63.96}.items():
        result.add(f"memory/ours/{name}", value, "MB", 41)
    return result


@pytest.mark.parametrize(
    "said",
    [
        "| tokens read that nobody was billed for | 3 |",
        "| requests still open 2 s after their deadline | 0 |",
        "| resident MB: first tenth of the part without kills, its last tenth | 1,598, 1,622 |",
        "| slope there, MB per hour | 64 |",
        "| requests | 70,514 |",
        "| kill -9 | 4 |",
        "| seconds until ready again, p50 | 13.3 |",
        "30 minutes, 48 callers. Outcomes: QUEUE_FULL 29,960, finished 2,256.",
    ],
)
def test_what_was_measured_is_said(said: str) -> None:
    assert said in soak_table(_result().as_json()).splitlines()
