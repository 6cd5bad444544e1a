"""A small end-to-end result, with figures that are told apart."""

from __future__ import annotations

from bench.result import Result

LAYERS = ("cache", "routing", "compression", "prompt_cache", "batch", "quantization")


def small_result(*, quick: bool = False) -> Result:
    result = Result("endtoend", quick)
    for mix, cost in (("support_heavy", 0.0812), ("adversarial", 0.2671)):
        for system, paid in (("ours", cost), ("litellm", 0.0161), ("baseline", 1.0)):
            of = f"{mix}/{system}/"
            result.add(f"{of}cost_ratio", paid, "ratio", 2000, (paid * 0.9, paid * 1.1))
            result.add(f"{of}cost_ratio_prompt_cached", paid + 0.01, "ratio", 2000, (paid, paid + 0.02))
            result.add(f"{of}cost_ratio_if_other-model", paid + 0.03, "ratio", 2000)
            result.add(f"{of}usd_per_1000_requests", paid * 14, "USD", 2000)
            result.add(f"{of}quality_ratio", 0.9934, "ratio", 500, (0.981, 1.003))
            result.add(f"{of}quality_covered", 0.2567, "ratio", 2000)
            result.add(f"{of}failed", 0, "count", 2000)
            result.add(f"{of}identity_violations", 0, "count", 2000)
            for at, layer in enumerate(LAYERS):
                result.add(f"{of}saved_by_{layer}", (1 - paid) * (0.5, 0.3, 0.2, 0.0, 0.0, 0.0)[at], "ratio", 2000)
            result.add(f"{of}overhead", 0.00001, "ratio", 2000)
        result.add(f"{mix}/ours/added_p50_ms_miss", 31.4, "ms", 80)
        result.add(f"{mix}/ours/added_p95_ms_miss", 140.6, "ms", 80)
        result.add(f"{mix}/direct/added_p50_ms_miss", 2.5, "ms", 80)
        for hop, milliseconds in (("cache", 8.1), ("router", 2.2), ("inference", 5.4)):
            result.add(f"{mix}/ours/hop_p50_ms_{hop}", milliseconds, "ms", 80)
        result.add(f"{mix}/ours/rag_cost_ratio", 0.271, "ratio", 200)
        result.add(f"{mix}/ours/saved_until_100", 0.4, "ratio", 20)
        result.add(f"{mix}/ours/hits_until_100", 0.1, "ratio", 20)
        result.add(f"{mix}/ours/saved_until_20", 0.3, "ratio", 20)
        result.add(f"{mix}/ours/hits_until_20", 0.0, "ratio", 20)
    for name in ("full", "none", *(f"{kind}_{layer}" for kind in ("only", "without") for layer in LAYERS)):
        result.add(f"support_heavy/{name}/cost_ratio", 0.7, "ratio", 500, (0.65, 0.75))
        result.add(f"support_heavy/{name}/quality_ratio", 1.0, "ratio", 100, (1.0, 1.0))
    for target in (80, 99):
        for end in ("", "_reasoning"):
            result.add(f"adversarial/frontier_{target}{end}/cost_ratio", target / 200, "ratio", 400, (0.1, 0.6))
            result.add(f"adversarial/frontier_{target}{end}/quality_ratio", target / 100, "ratio", 400, (0.7, 1.0))
    result.add("additivity/ours/shortfall", 0.31, "ratio", 500)
    result.assumptions |= {
        "prices": {"main": [{"model": "<b>strong</b>", "input": "10", "output": "30", "source": "a | list"}]},
        "mixes": {
            "support_heavy": {
                "shares": {"support": 0.55}, "quality_target": 0.98, "requests": 2000, "different_questions": 900,
            }
        },
        "model_speeds": {"strong": [0.6, 30.0]},
        "idle": "no own hardware & no idle cost",
        "held_out_side_only": ["cache/one", "router/two"],
    }  # fmt: skip
    result.skipped.append("litellm: not <installed>")
    return result
