"""The reaper against a vast.ai that has faults: what should not be there goes, and nothing else is touched."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from callsheet.errors import StoreFault
from callsheet.hosts import HostBook, HostLabel, HostState
from callsheet.reaper import Reaper, Sweep
from callsheet.store import LocalFolder
from callsheet.vastai import VastClient
from callsheet.vastai_answers import VastError
from tests.callsheet.test_hosts import record, records
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
    return VastClient(SecretStr(KEY), vast.url, paced=False)


@pytest.fixture
def book(tmp_path: Path) -> HostBook:
    return HostBook(LocalFolder(tmp_path))


@pytest.fixture
def rented(vast: Vast, book: HostBook) -> Callable[..., tuple[HostLabel, Box]]:
    """A box of ours with its record, as it is once it is ready, but for what is said."""

    def rent(
        *, hours: float = 6, written: bool = True, fate: Fate = "", fleet: str = "studio", **facts: Any
    ) -> tuple[HostLabel, Box]:
        label = HostLabel.new(fleet, book.id(), vast.now, hours * HOUR)
        box = vast.made(vast.offer(), {"label": str(label), "disk": 80})
        box.fate = fate
        if written:
            book.write(record(label, **{"state": "ready", "instance": box.id} | facts))
        return label, box

    return rent


@pytest.fixture
def sweep(vast: Vast, client: VastClient, book: HostBook) -> Callable[..., Sweep]:
    def once(*, dry_run: bool = False, book: HostBook | None = book, **settings: Any) -> Sweep:
        reaper = Reaper(
            client,
            book,
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
        ({"max_per_hour": 0.3}, 5.5, "it costs $0.422 an hour"),
    ],
)
def test_what_should_not_be_there_goes(
    vast: Vast, rented: Any, sweep: Any, book: HostBook, facts: dict[str, Any], minutes: float, reason: str
) -> None:
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


def test_without_records_the_time_on_the_label_decides(vast: Vast, rented: Any, sweep: Any) -> None:
    well, dead, over = rented()[1], rented(fate="exits")[1], rented(hours=0.5)[1]
    vast.advance(HOUR)
    found = sweep(book=None)
    assert [one.id for one in found.destroyed] == [over.id]
    # One look tells nothing of a box that is offline: it costs little, and its time comes.
    assert [box.id for box in vast.billable()] == [well.id, dead.id]
    assert found.is_clean


def test_what_is_written_down_elsewhere_is_not_taken_for_forgotten(
    vast: Vast, client: VastClient, rented: Any, tmp_path: Path
) -> None:
    """The wrong store, or that of another of our machines with the same fleet name."""
    box = rented()[1]
    other = HostBook(LocalFolder(tmp_path / "elsewhere"))
    for _ in range(2):
        vast.advance(HOUR)
        found = Reaper(client, other, now=lambda: vast.now).sweep()
        assert ([one.id for one in found.kept], found.doomed) == ([box.id], [])
        other.id()  # at first it has no name yet


class Broken(LocalFolder):
    """A store that can be read or written no more."""

    reads = writes = True

    def get(self, path: str) -> bytes:
        if not self.reads and path.endswith(".json"):
            raise StoreFault(f"{path} could not be read")
        return super().get(path)

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        if not self.writes:
            raise StoreFault(f"{path} could not be written")
        return super().put_if(path, content, version)


@pytest.mark.parametrize("what", ["reads", "writes"])
def test_a_store_that_fails_holds_up_no_destroy_and_is_told(
    vast: Vast, rented: Any, sweep: Any, tmp_path: Path, what: str
) -> None:
    over, well = rented(hours=0.5)[1], rented()[1]
    vast.advance(HOUR)
    store = Broken(tmp_path)
    setattr(store, what, False)
    found = sweep(book=HostBook(store))
    assert [one.id for one in found.destroyed] == [over.id]
    assert [box.id for box in vast.billable()] == [well.id]
    assert not found.is_clean
    assert "could not be" in found.faults[0]


def test_one_record_that_cannot_be_read_keeps_its_own_box_and_no_other(
    vast: Vast, rented: Any, sweep: Any, tmp_path: Path
) -> None:
    torn, lost = rented(), rented(written=False)[1]
    (tmp_path / f"hosts/{torn[0].lease}.json").write_text("{")
    vast.advance(HOUR)
    found = sweep()
    assert ([one.id for one in found.destroyed], [one.id for one in found.kept]) == ([lost.id], [torn[1].id])
    assert torn[0].lease in found.faults[0]
    vast.advance(6 * HOUR)
    assert [one.id for one in sweep().destroyed] == [torn[1].id], "its time is over all the same"


def test_an_empty_list_ends_no_host_that_is_in_use(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label, box = rented()
    vast.advance(HOUR)
    vast.fail("list", "empty and said so")
    sweep()
    assert (book.read(label.lease).state, book.read(label.lease).missing_since) == ("ready", vast.now)
    vast.advance(300)
    assert [one.id for one in sweep().kept] == [box.id]
    assert book.read(label.lease).missing_since is None, "there it is"


def test_a_host_that_stays_away_is_closed_after_an_hour(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label, box = rented()
    vast.advance(HOUR)
    box.gone = vast.now
    for minutes in (0, 5, 50):
        vast.advance(minutes * 60)
        sweep()
        assert book.read(label.lease).state == "ready"
    vast.advance(360)
    sweep()
    assert (book.read(label.lease).state, "an hour" in book.read(label.lease).reason) == ("ended", True)


def test_another_accounts_hosts_are_none_that_are_missing(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label = HostLabel.new("studio", book.id(), vast.now, 6 * HOUR)
    theirs = book.write(record(label, state="booting", instance=1, account=7))
    vast.advance(HOUR)
    sweep()
    vast.advance(2 * HOUR)
    sweep()
    assert book.read(label.lease) == theirs


def test_a_second_box_of_a_lease_goes_and_the_lease_stays(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label, box = rented()
    twin = vast.made(vast.offer(), {"label": str(label), "disk": 80})
    vast.advance(HOUR)
    found = sweep()
    assert [(one.id, one.reason) for one in found.destroyed] == [(twin.id, f"its lease is that of {box.id}")]
    assert book.read(label.lease).state == "ready"
    assert [one.id for one in vast.billable()] == [box.id]


def test_a_host_that_became_ready_while_it_was_judged_stays(
    vast: Vast, rented: Any, client: VastClient, book: HostBook
) -> None:
    label, box = rented(state="booting")
    vast.advance(HOUR)

    class Late(VastClient):
        """Between the records and the list the last host answers."""

        def instances(self) -> Any:
            book.change(label.lease, ("booting",), state="ready")
            return super().instances()

    found = Reaper(Late(SecretStr(KEY), vast.url, paced=False), book, now=lambda: vast.now).sweep()
    assert [one.id for one in found.doomed] == [box.id], "by what was written down before"
    assert not vast.asked("destroy")
    assert book.read(label.lease).state == "ready"


def test_the_reaper_too_remembers_a_machine_on_which_nothing_comes_up(
    vast: Vast, rented: Any, sweep: Any, book: HostBook
) -> None:
    label, _ = rented(state="booting", fate="stuck")
    vast.advance(HOUR)
    sweep()
    assert book.read(label.lease).failed_boot


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
    label, box = rented(fate="exits")
    before = [book.read(label.lease) for label in (label,)]
    vast.advance(HOUR)
    sweep(dry_run=True)
    assert [book.read(label.lease) for label in (label,)] == before
    assert not vast.asked("destroy")


def test_too_many_at_once_are_a_persons_business(vast: Vast, rented: Any, sweep: Any, book: HostBook) -> None:
    book.id()
    for _ in range(4):
        rented(written=False)
    over, returned = rented(hours=0.1)[1], rented(state="draining")[1]
    vast.advance(HOUR)
    found = sweep(at_most=3)
    assert "4 boxes would be destroyed at once" in found.breaker
    assert not found.is_clean
    assert [one.id for one in found.destroyed] == [over.id, returned.id], "that needs no judgement"
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


@pytest.mark.parametrize("fault", ["502", "row without id", "wrong key", "html", "empty", "row missing"])
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
    label = HostLabel.new("studio", book.id(), vast.now, 6 * HOUR)
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
            VastClient(SecretStr(KEY), vast.url, paced=False),
            book,
            now=lambda: vast.now,
            sleep=lambda _: vast.advance(15.0),
        )
        foreign = vast.made(vast.offer(), {"label": "callsheet"})
        for state, fate in kinds:
            label = HostLabel.new("studio", book.id(), vast.now, 2 * HOUR)
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
        assert all(one.state == "ended" for one in records(book))


def test_what_is_over_for_long_is_forgotten(vast: Vast, book: HostBook, sweep: Any, tmp_path: Path) -> None:
    """The label's end is long past, so no box of it may live; machines are remembered for a day."""
    old, young, alive = (HostLabel.new("studio", book.id(), vast.now + n, 3600) for n in range(3))
    for label in (old, young):
        book.write(record(label, state="ended"))
        book.keep_log(label.lease, "its last lines")
    vast.advance(3600 + 3 * 86_400 + 1)
    book.change(young.lease, ("ended",), ends=vast.now - 60)
    book.write(record(alive, state="draining"))
    assert sweep().is_clean
    assert {path.name for path in (tmp_path / "hosts").iterdir()} >= {
        "book",
        f"{young.lease}.json",
        f"{young.lease}.log",
    }
    assert book.read(old.lease) is None
    assert not (tmp_path / f"hosts/{old.lease}.log").exists()
    assert book.read(alive.lease) is not None
