"""Writes the headline table of README.md and README.ko.md: ``python -m bench.headline [--check]``.

The figures come from bench/results/endtoend.json alone, as those of docs/benchmarks.md do, so that none is typed by
hand. They stand between ``<!-- bench:headline:begin ... -->`` and ``<!-- bench:headline:end -->``. A ``--quick`` run is
not quoted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cells import Figures
from bench.endtoend_tables import SYSTEMS, names, whatif
from bench.sheets import Sheet, percent

RESULT = Path("bench/results/endtoend.json")
PAGES = (Path("README.md"), Path("README.ko.md"))
_BLOCK = re.compile(r"(<!-- bench:headline:begin[^>]*-->\n).*?(<!-- bench:headline:end -->)", re.DOTALL)
_MIXES = {
    "support_heavy": ("help desk", "고객 상담 위주"),
    "even": ("a fifth of each workload", "작업 부하 다섯 가지를 고르게"),
    "adversarial": ("adversarial: hard, nothing repeats", "불리한 조건: 어렵고 반복 없음"),
}
_TITLES = {
    False: (
        "mix", "system", "cost, of the strong model alone", "beside its bill with prompt caching", "if it were {other}",
        "quality kept", "known of",
    ),
    True: (
        "혼합", "시스템", "비용(강한 모델만 쓸 때 대비)", "프롬프트 캐시를 쓴 청구서 대비", "강한 모델이 {other}일 때",
        "유지된 품질", "품질을 아는 비율",
    ),
}  # fmt: skip
_NOTES = {
    False: "{requests} requests in all through the whole mesh, models played as they were recorded; 95% intervals. "
    "Nothing is claimed of the quality of the requests outside the last column; of answers from passages it "
    "says that what they need was still in the prompt, not who wrote how well. Prices, shares, what is "
    "modelled and what quality means: [benchmarks]({page}).",
    True: "메시 전체를 지난 요청은 모두 {requests}건이고, 모델은 기록된 대로 연기했습니다. 대괄호는 95% "
    "구간입니다. 마지막 열에 들지 않는 요청의 품질은 주장하지 않으며, 문단에서 찾는 답의 품질은 필요한 "
    "내용이 프롬프트에 남았다는 뜻이지 글솜씨가 아닙니다. 가격, 비율, 모델링한 것, 품질의 뜻은 "
    "[벤치마크]({page})에 있습니다.",
}
_PAGE = "docs/benchmarks.md#what-is-left-of-the-bill-end-to-end"


def table(result: Mapping[str, Any], *, korean: bool) -> str:
    """The table and the line beneath it."""
    figures = Figures(result)
    other = whatif(figures)
    rows = []
    for mix in names(figures):
        for system in ("ours", "litellm"):
            of = f"{mix}/{system}/"
            if figures.value(f"{of}cost_ratio") is None:
                continue
            rows.append((
                _MIXES.get(mix, (mix, mix))[korean], SYSTEMS[system],
                _share(figures, f"{of}cost_ratio", strong=system == "ours"),
                _share(figures, f"{of}cost_ratio_prompt_cached"), _share(figures, f"{of}cost_ratio_if_{other}"),
                _share(figures, f"{of}quality_ratio"), percent(figures.value(f"{of}quality_covered"), 0),
            ))  # fmt: skip
    titles = tuple(title.format(other=other) for title in _TITLES[korean])
    requests = sum(int(figures.n(f"{mix}/ours/cost_ratio")) for mix in names(figures))
    note = _NOTES[korean].format(requests=f"{requests:,}", page=_PAGE)
    return f"{Sheet('headline', titles, 2, rows).markdown()}\n\n{note}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the marked block of each page; 1 when that cannot be, or with ``--check`` when a page is stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.headline", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a page is stale")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("pages", nargs="*", type=Path, default=list(PAGES), help="names with .ko. are Korean")
    options = parser.parse_args(arguments)
    if not options.result.is_file():
        print(
            f"{options.result}: not there; `python -m bench.endtoend --json {options.result}` makes it", file=sys.stderr
        )
        return 1
    result = json.loads(options.result.read_text("utf-8"))
    if result["quick"]:
        print(f"{options.result}: a quick run is not quoted", file=sys.stderr)
        return 1
    status = 0
    for page in options.pages:
        old = page.read_text("utf-8")
        text = table(result, korean=".ko." in page.name)
        new, count = _BLOCK.subn(lambda found, text=text: found[1] + text + found[2], old)  # type: ignore[misc]  # mypy sees no default of a lambda's argument
        if count != 1:
            print(f"{page}: no block marked bench:headline:begin", file=sys.stderr)
            status = 1
        elif options.check and new != old:
            print(f"{page}: not what `python -m bench.headline` writes", file=sys.stderr)
            status = 1
        elif not options.check:
            page.write_text(new, "utf-8")
    return status


def _share(figures: Figures, name: str, *, strong: bool = False) -> str:
    value = figures.value(name)
    if value is None:
        return ""
    low, high = figures.metrics[name]["ci95"] or (value, value)
    text = f"**{percent(value)}**" if strong else percent(value)
    ends = percent(low), percent(high)
    return text + (f" [{ends[0]}, {ends[1]}]" if ends[0] != ends[1] else "")


if __name__ == "__main__":
    sys.exit(main())
