"""Labels and records of rented hosts."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.errors import BadInput, StoreFault
from callsheet.fleet import Engine, Host
from callsheet.hosts import HostBook, HostLabel, HostRecord, record_path, rented_host
from callsheet.store import LocalFolder
from callsheet.vastai_answers import LABEL_CHARACTERS, Instance
from tests.fakes.vast import ACCOUNT


def record(label: HostLabel, **more: object) -> HostRecord:
    facts = {
        "lease": label.lease,
        "account": ACCOUNT,
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


def records(book: HostBook) -> list[HostRecord]:
    """Every record of the book that can be read."""
    return list(book.hosts().records.values())


@pytest.fixture
def label() -> HostLabel:
    return HostLabel.new("studio", "5e77ab01", 1_800_000_000.4, 3600)


@pytest.fixture
def book(tmp_path: Path) -> HostBook:
    return HostBook(LocalFolder(tmp_path))


def test_a_label_says_whose_a_box_is_and_until_when(label: HostLabel) -> None:
    assert str(label) == f"callsheet:studio:5e77ab01:{label.lease}:1800000000:1800003600"
    assert HostLabel.read(str(label)) == label


@given(st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True), st.floats(0, 9e9), st.floats(0, 9e6))
def test_every_label_is_read_as_it_was_written(fleet: str, now: float, seconds: float) -> None:
    label = HostLabel.new(fleet, "5e77ab01", now, seconds)
    assert HostLabel.read(str(label)) == label
    assert len(str(label)) <= LABEL_CHARACTERS


@pytest.mark.parametrize(
    "text",
    ["", "callsheet", "mine", "callsheet:studio:5e77ab01:1234:1:2", "xcallsheet:studio:5e77ab01:0123456789ab:1:2",
     "callsheet:studio:5e77ab01:0123456789ab:1:2 ", "callsheet:studio:0123456789ab:1:2\n", "callsheet:stu/dio:5e77ab01:0123456789ab:1:2"],
)  # fmt: skip
def test_what_is_not_quite_our_label_is_not_ours(text: str) -> None:
    assert HostLabel.read(text) is None


@pytest.mark.parametrize("fleet", ["", "a b", "a:b", "x" * 41, "ü"])
def test_a_fleet_that_cannot_stand_in_a_label_is_refused(fleet: str) -> None:
    with pytest.raises(BadInput, match="expected 1 to 40 letters"):
        HostLabel.new(fleet, "5e77ab01", 0, 1)


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
    assert records(book) == [booting]
    assert book.change("0" * 12, ("creating",), state="ready") is None


def test_a_host_is_reached_by_its_ports_or_through_a_proxy(label: HostLabel) -> None:
    engine = Engine(kind="comfyui", revision="r", port=8188)
    pattern, kept = Host(name="rented", engine=(engine,)), record(label, instance=7)
    box = replace(Instance.of({"id": 7}), address="10.0.0.1", ports={8188: 41234})

    def url(box: Instance, proxy: str = "") -> str | None:
        host = rented_host(pattern, kept, box, proxy)
        return host.engines[0].url if host else None

    assert url(box) == "http://10.0.0.1:41234"
    assert url(replace(box, ports={})) is None
    proxy = "https://{instance}-{port}.proxy.vast.ai"
    assert url(replace(box, ports={}), proxy) == "https://7-8188.proxy.vast.ai"


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


def test_a_record_that_cannot_be_read_is_told_and_hides_no_other(
    book: HostBook, label: HostLabel, tmp_path: Path
) -> None:
    other = HostLabel.new("studio", "5e77ab01", 1, 2)
    book.write(record(other))
    LocalFolder(tmp_path).put(record_path(label.lease), b"{}")
    LocalFolder(tmp_path).put("hosts/readme.json", b"{}")
    found = book.hosts()
    assert list(found.records) == [other.lease]
    assert list(found.unreadable) == [label.lease]
    assert "is no record of a host" in found.unreadable[label.lease]


def test_what_a_later_version_wrote_is_kept(book: HostBook, label: HostLabel, tmp_path: Path) -> None:
    path = record_path(label.lease)
    later = record(label).model_dump() | {"colour": "green"}
    LocalFolder(tmp_path).put(path, json.dumps(later).encode())
    assert book.change(label.lease, ("creating",), state="ready") is not None
    assert json.loads(LocalFolder(tmp_path).get(path))["colour"] == "green"


def test_a_record_is_changed_as_it_was_seen_or_not_at_all(book: HostBook, label: HostLabel) -> None:
    seen = book.write(record(label, state="booting", instance=7))
    book.change(label.lease, ("booting",), state="ready")
    assert book.change_as_seen(seen, state="draining") is None
    assert book.read(label.lease).state == "ready"
    ready = book.read(label.lease)
    assert book.change_as_seen(ready, state="draining").state == "draining"


class Deaf(LocalFolder):
    """A bucket that wrote what it was told, lost its answer, and refused the same when it was sent again."""

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        super().put_if(path, content, version)
        return False


def test_a_write_whose_answer_was_lost_is_known_again(tmp_path: Path, label: HostLabel) -> None:
    book = HostBook(Deaf(tmp_path))
    book.write(record(label))
    with pytest.raises(StoreFault, match="is there already"):
        book.write(record(label))
    changed = book.change(label.lease, ("creating",), state="booting", instance=7)
    assert changed == book.read(label.lease)
    assert changed.instance == 7


def test_a_book_has_a_name_that_stays(tmp_path: Path) -> None:
    assert HostBook(LocalFolder(tmp_path)).known_id() is None
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: HostBook(LocalFolder(tmp_path)).id(), range(8)))
    assert names == {HostBook(LocalFolder(tmp_path)).known_id()}
    LocalFolder(tmp_path).put("hosts/book", b"?")
    with pytest.raises(StoreFault, match="no name of a book"):
        HostBook(LocalFolder(tmp_path)).id()
