"""The reaper against a vast.ai that has faults: what should not be there goes, and nothing else is touched."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from callsheet.hosts import HostBook, HostLabel, HostState
from callsheet.reaper import Reaper, Sweep
from callsheet.store import LocalFolder
from callsheet.vastai import VastClient
from callsheet.vastai_answers import VastError
from tests.callsheet.test_hosts import record
from tests.fakes.vast import KEY, Box, Fate, Fault, Vast

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.03")


@pytest.fixture
def vast() -> Iterator[Vast]:
    with Vast() as server:
        yield server


@pytest.fixture
def client(vast: Vast) -> VastClient:
    return VastClient(SecretStr(KEY), vast.url)


@pytest.fixture
def book(tmp_path: Path) -> HostBook:
    return HostBook(LocalFolder(tmp_path))


@pytest.fixture
def rented(vast: Vast, book: HostBook) -> Callable[..., tuple[HostLabel, Box]]:
    """A box of ours with its record, as it is once it is ready, but for what is said."""

    def rent(
        *, hours: float = 6, written: bool = True, fate: Fate = "", fleet: str = "studio", **facts: Any
    ) -> tuple[HostLabel, Box]:
        label = HostLabel.new(fleet, vast.now, hours * HOUR)
        box = vast.made(vast.offer(), {"label": str(label), "disk": 80})
        box.fate = fate
        if written:
            book.write(record(label, **{"state": "ready", "instance": box.id} | facts))
        return label, box

    return rent


@pytest.fixture
def sweep(vast: Vast, client: VastClient, book: HostBook) -> Callable[..., Sweep]:
    def once(*, dry_run: bool = False, with_book: bool = True, **settings: Any) -> Sweep:
        reaper = Reaper(
            client,
            book if with_book else None,
            now=lambda: vast.now,
            sleep=lambda seconds: vast.advance(15.0),
            **settings,
        )
        return reaper.sweep(dry_run=dry_run)

    return once


def test_what_is_as_it_should_be_stays(vast: Vast, rented: Any, sweep: Any) -> None:
    ours, foreign = rented()[1], vast.made(vast.offer(), {"label": "somebody's"})
    vast.made(vast.offer(), {"label": None})
    vast.advance(HOUR)
    found = sweep()
    assert ([box.id for box in found.kept], found.doomed, found.foreign) == ([ours.id], [], 2)
    assert found.is_clean
    assert not vast.asked("destroy")
    assert len(vast.billable()) == 3
    assert foreign.destroyed is None


@pytest.mark.parametrize(
    ("facts", "minutes", "reason"),
    [
        ({"hours": 1}, 61, "its time is over"),
        ({"hours": 0.2, "written": False}, 13, "its time is over"),
        ({"written": False}, 16, "nobody has it written down"),
        ({"state": "draining"}, 1, "it was given back"),
        ({"state": "ended", "reason": "done"}, 1, "it was given back: done"),
        ({"state": "booting", "fate": "stuck"}, 31, "it did not come up in time"),
        ({"state": "creating", "instance": None}, 31, "it did not come up in time"),
        ({"instance": 5}, 1, "its lease is that of 5"),
        ({"max_per_hour": 0.3}, 5.5, "it costs $0.422 an hour"),
    ],
)
def test_what_should_not_be_there_goes(
    vast: Vast, rented: Any, sweep: Any, book: HostBook, facts: dict[str, Any], minutes: float, reason: str
) -> None:
    book.write(record(HostLabel.new("studio", vast.now, HOUR), state="ended"))
    label, box = rented(**facts)
    vast.advance(minutes * 60 - 120)
    if minutes > 5:
        assert not sweep().doomed, "not a minute too early"
    vast.advance(120)
    found = sweep()
    assert [(one.id, one.reason.startswith(reason)) for one in found.destroyed] == [(box.id, True)]
    assert found.is_clean
    assert vast.billable() == []
    if kept := book.read(label.lease):
        assert kept.state == "ended"
    assert not sweep().doomed


def test_a_box_that_does_not_run_is_given_ten_minutes(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label, box = rented()
    vast.advance(400)
    box.fate = "exits"
    assert not sweep().doomed
    assert book.read(label.lease).ill_since == vast.now
    vast.advance(300)
    box.fate = ""
    assert not sweep().doomed
    assert book.read(label.lease).ill_since is None, "it came back"
    box.fate = "offline"
    sweep()
    vast.advance(601)
    assert [one.reason for one in sweep().destroyed] == ["it is offline since 601 s"]


def test_without_records_label_age_and_state_decide(vast: Vast, rented: Any, sweep: Any) -> None:
    well, dead, over = rented()[1], rented(fate="exits")[1], rented(hours=0.5)[1]
    vast.advance(HOUR)
    found = sweep(with_book=False)
    assert {one.id for one in found.destroyed} == {dead.id, over.id}
    assert [box.id for box in vast.billable()] == [well.id]


def test_a_store_without_any_record_is_taken_for_the_wrong_one(vast: Vast, rented: Any, sweep: Any) -> None:
    box = rented(written=False)[1]
    vast.advance(HOUR)
    assert [one.id for one in sweep().kept] == [box.id]


def test_another_fleet_is_left_alone_where_one_is_named(vast: Vast, rented: Any, sweep: Any) -> None:
    rented(hours=0.1, fleet="other")
    mine = rented(hours=0.1)[1]
    vast.advance(HOUR)
    assert [one.id for one in sweep(fleet="studio").destroyed] == [mine.id]


def test_a_dry_run_says_it_and_does_nothing(vast: Vast, rented: Any, sweep: Any, book: HostBook) -> None:
    label, box = rented(hours=0.1)
    vast.advance(HOUR)
    found = sweep(dry_run=True)
    assert ([one.id for one in found.doomed], found.destroyed) == ([box.id], [])
    assert book.read(label.lease).state == "ready"
    assert not vast.asked("destroy")


def test_too_many_at_once_are_a_persons_business(vast: Vast, rented: Any, sweep: Any) -> None:
    for _ in range(4):
        rented(hours=0.1)
    vast.advance(HOUR)
    found = sweep(at_most=3)
    assert "4 boxes would be destroyed at once" in found.breaker
    assert not found.is_clean
    assert not vast.asked("destroy")
    assert len(sweep(at_most=4).destroyed) == 4


def test_a_box_that_lingers_is_waited_for_and_one_that_stays_is_told(
    vast: Vast, rented: Any, sweep: Any
) -> None:
    box = rented(hours=0.1)[1]
    vast.advance(HOUR)
    vast.fail("destroy", "lingers")
    assert [one.id for one in sweep().destroyed] == [box.id]
    stays = rented(hours=0.1)[1]
    vast.advance(HOUR)
    vast.fail("destroy", "not taken on", times=4)
    found = sweep()
    assert list(found.left) == [stays.id]
    assert not found.is_clean
    assert [one.id for one in sweep().destroyed] == [stays.id], "the next one makes it good"


@pytest.mark.parametrize("fault", ["502", "row without id", "wrong key", "html"])
def test_on_a_list_that_is_not_whole_nothing_is_done(
    vast: Vast, rented: Any, sweep: Any, book: HostBook, fault: Fault
) -> None:
    label, _ = rented(hours=0.1)
    vast.advance(HOUR)
    vast.fail("list", fault, times=4)
    with pytest.raises(VastError):
        sweep()
    assert not vast.asked("destroy")
    assert book.read(label.lease).state == "ready"


def test_a_record_without_a_box_ends_once_it_is_sure(vast: Vast, sweep: Any, book: HostBook) -> None:
    label = HostLabel.new("studio", vast.now, 6 * HOUR)
    book.write(record(label))
    vast.advance(25 * 60)
    sweep()
    assert book.read(label.lease).state == "creating", "it may yet come, until its deadline"
    vast.advance(6 * 60)
    sweep()
    assert book.read(label.lease).state == "ended"


KINDS: tuple[tuple[HostState | None, Fate], ...] = (
    (None, ""), ("creating", ""), ("booting", "stuck"), ("ready", ""), ("ready", "exits"), ("draining", ""),
    ("ended", "invisible"),
)  # fmt: skip
FAULTS: tuple[Fault, ...] = ("502", "resets", "429 text", "not taken on", "lingers", "html")


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    faults=st.lists(st.tuples(st.sampled_from(["list", "destroy"]), st.sampled_from(FAULTS)), max_size=8),
)
def test_whatever_fails_nothing_of_ours_outlives_its_label_and_nobody_elses_is_touched(
    kinds: list[tuple[HostState | None, Fate]],
    faults: list[tuple[Any, Fault]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Vast() as vast:
        book = HostBook(LocalFolder(tmp_path_factory.mktemp("book")))
        reaper = Reaper(
            VastClient(SecretStr(KEY), vast.url),
            book,
            now=lambda: vast.now,
            sleep=lambda _: vast.advance(15.0),
        )
        foreign = vast.made(vast.offer(), {"label": "callsheet"})
        for state, fate in kinds:
            label = HostLabel.new("studio", vast.now, 2 * HOUR)
            box = vast.made(vast.offer(), {"label": str(label), "disk": 80})
            box.fate = fate
            if state is not None:
                book.write(record(label, state=state, instance=None if state == "creating" else box.id))
        for endpoint, fault in faults:
            if (endpoint, fault) not in (("list", "not taken on"), ("list", "lingers")):
                vast.fail(endpoint, fault)
        while vast.now < foreign.made + 2.5 * HOUR:
            with suppress(VastError):
                reaper.sweep()
            vast.advance(300.0)
        assert vast.billable() == [foreign]
        # Two hours of a box at most, and what a lost sweep or two cost.
        assert all(one.spent <= 2.4 * 0.43 for one in vast.boxes.values() if one is not foreign)
        assert all(one.state == "ended" for one in book.all())
