"""Notices of spot machines: what the file may say, and what counts as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.batch.preemption import Condition, parse

ROOT = Path(__file__).resolve().parents[3]


def test_the_file_of_the_deployment_is_right() -> None:
    notices = parse((ROOT / "deploy" / "preemption.yaml").read_text())
    by_name = {notice.name: notice for notice in notices}
    assert set(by_name) == {"aws-spot", "google-spot", "azure-spot", "file"}
    aws, azure, google = by_name["aws-spot"], by_name["azure-spot"], by_name["google-spot"]
    assert aws.token is not None
    assert aws.token.method == "PUT"
    assert aws.when.holds('{"action": "terminate", "time": "2026-09-18T08:22:00Z"}')
    assert not aws.when.holds("")
    assert google.when.holds("TRUE\n")
    assert not google.when.holds("FALSE")
    planned = '{"Events": [{"EventType": "Reboot"}, {"EventType": "Preempt"}]}'
    assert azure.when.holds(planned)
    assert not azure.when.holds('{"Events": []}')
    assert not azure.when.holds('{"Events": [{"EventType": "Freeze"}]}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not YAML"),
        ("{}", "must be a list"),
        ("notices: [{name: a}]", "exactly one of file and url"),
        ("notices: [{name: a, file: b, url: c}]", "exactly one of file and url"),
        ("notices: [{file: b}]", "name"),
        ("notices: [{name: a, file: b, colour: red}]", "only the keys"),
        ("notices: [{name: a, url: b, when: {size: 3}}]", "notices"),
    ],
)
def test_a_wrong_file_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_conditions() -> None:
    assert Condition().holds("")
    assert Condition(json="a.b").holds('{"a": {"b": null}}')
    assert not Condition(json="a.b").holds('{"a": [1]}')
    assert Condition(json="*.x", equals=("1",)).holds('{"p": {"x": 1}}')
