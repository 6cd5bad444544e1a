"""The sandbox's books: tokens as a provider would count them, and its prompt cache."""

from __future__ import annotations

from sandbox.usage import PromptCache, prompt_tokens


def test_tokens_follow_the_published_rule() -> None:
    one = prompt_tokens({"messages": [{"role": "user", "content": "Hello"}]})
    assert len(one) == 3 + 1 + 3
    parts = prompt_tokens({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]})
    assert parts == one


def test_a_repeated_prefix_is_cached_from_1024_tokens_in_steps_of_128() -> None:
    cache = PromptCache()
    ids = list(range(1500))
    assert cache.lookup("m", ids[:1000]) == 0
    assert cache.lookup("m", ids[:1000]) == 0  # under the minimum
    assert cache.lookup("m", ids) == 0
    assert cache.lookup("m", ids) == 1408  # 1024 + 3 * 128
    assert cache.lookup("m", [*ids[:1200], -1, *ids[1200:]]) == 1152
    assert cache.lookup("other", ids) == 0
