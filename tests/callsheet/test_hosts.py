"""Labels and records of rented hosts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.errors import BadInput, StoreFault
from callsheet.hosts import HostBook, HostLabel, HostRecord, record_path
from callsheet.store import LocalFolder
from callsheet.vastai_answers import LABEL_CHARACTERS


def record(label: HostLabel, **more: object) -> HostRecord:
    facts = {
        "lease": label.lease,
        "label": str(label),
        "fleet": label.fleet,
        "made": label.made,
        "ends": label.ends,
        "deadline": label.made + 1800,
        "max_per_hour": 0.5,
        "offer": 1,
        "machine": 2,
    }
    return HostRecord.model_validate(facts | more)


@pytest.fixture
def label() -> HostLabel:
    return HostLabel.new("studio", 1_800_000_000.4, 3600)


@pytest.fixture
def book(tmp_path: Path) -> HostBook:
    return HostBook(LocalFolder(tmp_path))


def test_a_label_says_whose_a_box_is_and_until_when(label: HostLabel) -> None:
    assert str(label) == f"callsheet:studio:{label.lease}:1800000000:1800003600"
    assert HostLabel.read(str(label)) == label


@given(st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True), st.floats(0, 9e9), st.floats(0, 9e6))
def test_every_label_is_read_as_it_was_written(fleet: str, now: float, seconds: float) -> None:
    label = HostLabel.new(fleet, now, seconds)
    assert HostLabel.read(str(label)) == label
    assert len(str(label)) <= LABEL_CHARACTERS


@pytest.mark.parametrize(
    "text",
    ["", "callsheet", "mine", "callsheet:studio:1234:1:2", "xcallsheet:studio:0123456789ab:1:2",
     "callsheet:studio:0123456789ab:1:2 ", "callsheet:studio:0123456789ab:1:2\n", "callsheet:stu/dio:0123456789ab:1:2"],
)  # fmt: skip
def test_what_is_not_quite_our_label_is_not_ours(text: str) -> None:
    assert HostLabel.read(text) is None


@pytest.mark.parametrize("fleet", ["", "a b", "a:b", "x" * 41, "ü"])
def test_a_fleet_that_cannot_stand_in_a_label_is_refused(fleet: str) -> None:
    with pytest.raises(BadInput, match="expected 1 to 40 letters"):
        HostLabel.new(fleet, 0, 1)


def test_a_record_is_written_once_and_changed_where_it_is_as_thought(
    book: HostBook, label: HostLabel
) -> None:
    book.write(record(label))
    with pytest.raises(StoreFault, match="is there already"):
        book.write(record(label))
    booting = book.change(label.lease, ("creating",), state="booting", instance=7)
    assert booting is not None
    assert (booting.state, booting.instance) == ("booting", 7)
    assert book.change(label.lease, ("creating",), state="ready") is None
    assert book.read(label.lease) == booting
    assert list(book.all()) == [booting]
    assert book.change("0" * 12, ("creating",), state="ready") is None


def test_of_many_who_take_a_host_away_one_does(book: HostBook, label: HostLabel) -> None:
    book.write(record(label, state="ready"))
    with ThreadPoolExecutor(8) as pool:
        done = list(
            pool.map(
                lambda n: book.change(label.lease, ("ready",), state="draining", reason=f"run {n}"), range(8)
            )
        )
    (winner,) = [one for one in done if one]
    assert book.read(label.lease) == winner


def test_a_record_that_cannot_be_read_is_not_taken_for_none(
    book: HostBook, label: HostLabel, tmp_path: Path
) -> None:
    LocalFolder(tmp_path).put(record_path(label.lease), b"{}")
    with pytest.raises(StoreFault, match=r"is no record of a host"):
        list(book.all())
    LocalFolder(tmp_path).put("hosts/readme.json", b"{}")
    LocalFolder(tmp_path).delete(record_path(label.lease))
    assert list(book.all()) == []
