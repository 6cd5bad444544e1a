"""Names of objects, ids of workflows, page tokens, records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.batch.v1 import batch_pb2, stored_pb2

from mesh.errors import TenthError
from services.batch import batches
from services.batch.objects import check_name, open_store, read_records, write_records
from services.batch.refs import BatchRef, Progress, batch_workflow_id, gather_workflow_id, lane_queue
from services.batch.viewing import make_token, read_token

TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)


@given(TEXTS, TEXTS)
def test_no_two_ids_share_a_segment_and_none_leaves_its_folder(one: str, other: str) -> None:
    name = batches.batch_name(one, "b")
    check_name(name)
    assert name.count("/") == 3
    assert (batches.segment(one) == batches.segment(other)) == (one == other)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "a/b", "~", "x" * 5000, "\u0000", "%", "%2E", ".writing"])
def test_odd_ids_make_plain_segments(text: str) -> None:
    segment = batches.segment(text)
    check_name(segment)
    assert "/" not in segment
    assert not segment.startswith(".")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", "a b", "a\\b", "a\n", "x" * 1001])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(TenthError):
        check_name(name)


@given(st.integers(0, 10**19 - 1), st.integers(0, 10**19 - 1))
def test_newer_batches_come_first(one: int, other: int) -> None:
    names = [batches.index_name("t", "b", nanos) for nanos in (one, other)]
    assert (names[0] < names[1]) == (one > other)
    assert batches.created_ns(names[0].rpartition("/")[2]) == one


def test_later_runs_results_come_later() -> None:
    names = [batches.result_name(BatchRef("t", "b", run), "zz") for run in (1, 2, 10, 100)]
    assert names == sorted(names)
    assert [batches.run_of_result(name) for name in names] == [1, 2, 10, 100]
    with pytest.raises(ValueError, match="no chunk"):
        batches.result_name(BatchRef("t", "b"), "../x")


def test_workflows_and_queues_are_named() -> None:
    assert batch_workflow_id(BatchRef("t", "b")) == "batch-b"
    assert batch_workflow_id(BatchRef("t", "b", 3)) == "batch-b-r3"
    assert lane_queue("tenth-batch", "local", "org/model:8b") == "tenth-batch-local-org_model_8b"
    assert lane_queue("tenth-batch", "online") == "tenth-batch-online"


ENTRY = batches.index_name("t", "00000000-0000-0000-0000-000000000001", 5).rpartition("/")[2]


def test_a_page_token_leads_back_to_its_name() -> None:
    assert read_token(make_token(ENTRY)) == ENTRY


@given(st.one_of(st.text(max_size=100), st.binary(max_size=80).map(lambda raw: make_token(raw.decode("latin-1")))))
def test_any_other_text_is_no_page_token(text: str) -> None:
    with pytest.raises(TenthError) as error:
        read_token(text)
    assert error.value.field == "page_token"


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_records_come_back(texts: list[str]) -> None:
    records = [stored_pb2.StoredItem(index=number, custom_id=text) for number, text in enumerate(texts)]
    assert list(read_records(write_records(records), stored_pb2.StoredItem)) == records


@given(st.integers(1, 40))
def test_a_cut_object_is_told(missing: int) -> None:
    content = write_records([stored_pb2.StoredItem(custom_id="x" * 50)])
    with pytest.raises(TenthError) as error:
        list(read_records(content[:-missing], stored_pb2.StoredItem))
    assert error.value.reason == "STORE_DAMAGED"


@pytest.mark.parametrize("content", [b"\xff", b"\x02\xff\xff", b"\xff" * 20])
def test_what_holds_no_records_is_told(content: bytes) -> None:
    with pytest.raises(TenthError) as error:
        list(read_records(content, stored_pb2.StoredItem))
    assert error.value.reason == "STORE_DAMAGED"


@pytest.mark.parametrize("url", ["", "s3://", "http://x/y", "file://host/x", "file://"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="write"):
        open_store(url)


def test_progress_becomes_a_message() -> None:
    progress = Progress(
        state="done",
        done=3,
        failed=1,
        savings=[1, 2, 3, -4, 5, 6],
        lanes={"online": 1, "local": 2},
        end_time_seconds=2.5,
    )
    batch = batches.snapshot(progress)
    assert batch.state == batch_pb2.BATCH_STATE_DONE
    assert [(one.layer, one.saving_nano_usd) for one in batch.savings] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, -4),
        (5, 5),
        (6, 6),
    ]
    assert [(one.lane, one.item_count) for one in batch.lanes] == [("local", 2), ("online", 1)]
    assert batch.end_time.ToMilliseconds() == 2500


def test_nobody_gathers_with_another_tenant() -> None:
    asked = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c")]
    assert len({gather_workflow_id(tenant, caller, True, 3600) for tenant, caller in asked}) == 3


def test_windows_that_are_alike_gather_together() -> None:
    names = [gather_workflow_id("a", "c", True, seconds) for seconds in (60, 599, 3600, 7200, 86_400, 7 * 86_400)]
    assert names[0] == names[1] != names[2] == names[3] != names[4] == names[5]
