"""Renting against a vast.ai that has faults: one box at most, always written down, and none that is lost."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from callsheet.errors import BadInput, Budget, HostFault, StoreFault
from callsheet.hosts import HostBook, HostLabel, HostRecord, RecordedEngine
from callsheet.reaper import Reaper
from callsheet.rent_rules import RentRules
from callsheet.renting import Renter
from callsheet.store import LocalFolder
from callsheet.vastai import VastClient
from callsheet.vastai_answers import AuthError, CreditExhausted, Instance
from callsheet.verdicts import Lacks, Never
from tests.callsheet.test_hosts import record, records
from tests.fakes.vast import KEY, Fault, Vast

HOUR = 3600.0
RULES = RentRules(name="studio", gpu_names=("RTX 4090",), max_per_hour=0.6, image="comfy:1")


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
def warned() -> list[str]:
    return []


@pytest.fixture
def renter(vast: Vast, client: VastClient, book: HostBook, warned: list[str]) -> Callable[..., Renter]:
    def make(client: Any = client, book: Any = book, serves: str = "", **more: Any) -> Renter:
        return Renter(
            client,
            book,
            RULES.model_copy(update=more),
            serves=serves,
            engines=(RecordedEngine(name="comfyui", kind="comfyui", port=8188, slots=1),),
            now=lambda: vast.now,
            sleep=lambda _: vast.advance(60.0),
            warn=warned.append,
        )

    return make


def runs(record: HostRecord, box: Instance) -> bool:
    return 8188 in box.ports


def test_the_offer_on_which_the_work_costs_least_is_rented(vast: Vast, renter: Any, book: HostBook) -> None:
    slow = vast.offer(dph_base=0.30, inet_down=500.0, inet_down_cost=0.02)
    fast = vast.offer(dph_base=0.33, inet_down=2000.0, inet_down_cost=0.001)
    host = renter().rent(1.0, runs)
    assert host.record.offer == fast["id"], "loading is cheaper there"
    assert (host.record.state, host.box.ports) == ("ready", {8188: 48188})
    assert book.read(host.record.lease) == host.record
    assert HostLabel.read(host.box.label) is not None
    assert vast.now - host.record.made >= 300
    renter().give_back(host.record, "done")
    assert vast.billable() == []
    assert book.read(host.record.lease).state == "ended"
    again = renter().rent(40.0, runs)
    assert again.record.offer == slow["id"], "the load weighs less against so many hours"


def test_what_is_ordered_is_written_down_first(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer()
    vast.fail("create", "no credit")
    with pytest.raises(CreditExhausted):
        renter().rent(1.0, runs)
    (kept,) = records(book)
    assert (kept.state, "add credit" in kept.reason) == ("ended", True)
    assert vast.asked("create")[0].body["label"] == kept.label


@pytest.mark.parametrize("fault", ["gone 404", "gone 410", "gone 400"])
def test_an_offer_that_is_gone_gives_way_to_the_next(vast: Vast, renter: Any, fault: Fault) -> None:
    vast.offer(dph_base=0.3)
    second = vast.offer(dph_base=0.4)
    vast.fail("create", fault)
    assert renter().rent(1.0, runs).record.offer == second["id"]
    assert len(vast.boxes) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ["committed, then hangs", "committed, then resets", "committed, then 502", "committed, without id"],
)
@pytest.mark.parametrize("fate", ["", "invisible"])
def test_a_create_without_an_answer_is_found_by_its_label(
    vast: Vast, renter: Any, fault: Fault, fate: Any
) -> None:
    vast.offer()
    vast.offer()
    vast.fate = lambda offer: fate
    vast.fail("create", fault)
    host = renter().rent(1.0, runs)
    assert [box.id for box in vast.boxes.values()] == [host.box.id], "and no other is rented"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "502", "429 text"])
def test_a_create_that_made_nothing_is_waited_for_and_then_another_is_sent(
    vast: Vast, renter: Any, book: HostBook, fault: Fault
) -> None:
    vast.offer()
    vast.fail("create", fault)
    host = renter().rent(1.0, runs)
    assert host.record.made - min(r.made for r in records(book)) >= 300, (
        "not before it is sure that there is none"
    )
    assert len(vast.boxes) == 1


def test_a_box_that_an_error_made_is_destroyed(vast: Vast, renter: Any) -> None:
    vast.offer()
    vast.offer()
    vast.fail("create", "refused and made")
    host = renter().rent(1.0, runs)
    assert [box.id for box in vast.billable()] == [host.box.id]
    assert len(vast.boxes) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "said"),
    [("stuck", "did not answer within 40 minutes"), ("exits", "it is exited"), ("offline", "it is offline"),
     ("no ports", "did not answer within 40 minutes")],
)  # fmt: skip
def test_a_box_that_does_not_come_up_goes_and_its_machine_is_remembered(
    vast: Vast, renter: Any, warned: list[str], fate: Any, said: str
) -> None:
    bad = vast.offer(dph_base=0.3, machine_id=13)
    good = vast.offer(dph_base=0.4)
    vast.fate = lambda offer: fate if offer["machine_id"] == 13 else ""
    host = renter().rent(1.0, runs)
    assert (host.record.offer, len(vast.billable())) == (good["id"], 1)
    assert any(said in text and f"machine {bad['machine_id']}" in text for text in warned)
    renter().give_back(host.record, "done")
    vast.offer(dph_base=0.2, machine_id=13)
    vast.offer(dph_base=0.5)
    assert renter().rent(1.0, runs).record.machine != 13, "not for a day, nor by another process"


def test_an_image_that_is_not_there_is_not_tried_on_every_machine(vast: Vast, renter: Any) -> None:
    for _ in range(3):
        vast.offer()
    vast.fate = lambda offer: "bad image"
    with pytest.raises(BadInput, match=r"image comfy:1: .*manifest unknown; no other host is rented"):
        renter().rent(1.0, runs)
    assert (len(vast.boxes), vast.billable()) == (1, [])


def test_what_the_engine_says_ends_the_wait_and_the_box_s_last_lines_are_kept(
    vast: Vast, renter: Any, tmp_path: Path, book: HostBook
) -> None:
    vast.offer()
    vast.log = "loading\nGET https://bucket/x.gguf?X-Amz-Signature=5ecret&x=1\nout of memory\n"
    with pytest.raises(HostFault, match="the model is not there"):
        renter(attempts=1).rent(1.0, lambda record, box: "the model is not there")
    assert vast.billable() == []
    (kept,) = records(book)
    log = (tmp_path / f"hosts/{kept.lease}.log").read_text()
    assert "out of memory" in log
    assert "5ecret" not in log


@pytest.mark.slow
def test_it_is_given_up_after_some_offers(vast: Vast, renter: Any) -> None:
    for _ in range(9):
        vast.offer()
    vast.fate = lambda offer: "exits"
    with pytest.raises(HostFault, match="no host of fleet studio came up"):
        renter(attempts=3).rent(1.0, runs)
    assert (len(vast.boxes), vast.billable()) == (3, [])


def test_no_cap_is_passed(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer()
    vast.offer()
    first = renter().rent(1.0, runs)
    with pytest.raises(Budget, match="1 hosts are rented, and max_hosts is 1"):
        renter().rent(1.0, runs)
    with pytest.raises(
        Budget, match=r"cost \$0.42 an hour, one more up to \$0.60, and max_total_per_hour is \$0.90"
    ):
        renter(max_hosts=2, max_total_per_hour=0.9).rent(1.0, runs)
    vast.credit = 0.5
    with pytest.raises(Budget, match=r"\$0.50 of credit are left"):
        renter(max_hosts=2).rent(1.0, runs)
    assert [box.id for box in vast.boxes.values()] == [first.box.id]
    assert len(records(book)) == 1


def test_a_host_that_is_written_down_and_in_no_list_yet_counts(
    vast: Vast, renter: Any, book: HostBook
) -> None:
    vast.offer()
    label = HostLabel.new("studio", book.id(), vast.now, HOUR)
    book.write(record(label, state="ready", instance=5))
    with pytest.raises(Budget, match="1 hosts are rented"):
        renter().rent(1.0, runs)
    book.change(label.lease, ("ready",), missing_since=vast.now - 700)
    assert renter().rent(1.0, runs), "but for one that is missing for long"


def test_with_a_record_that_cannot_be_read_nothing_is_rented(
    vast: Vast, renter: Any, book: HostBook, tmp_path: Path
) -> None:
    vast.offer()
    book.id()
    (tmp_path / "hosts/0123456789ab.json").write_text("{}")
    with pytest.raises(
        StoreFault, match=r"0123456789ab.json is no record of a host; nothing is rented before"
    ):
        renter().rent(1.0, runs)
    assert vast.boxes == {}
    assert renter().reuse() is None


def test_an_offer_without_a_price_is_none(vast: Vast, renter: Any) -> None:
    vast.offer(dph_base=None)
    good = vast.offer(dph_base=0.5)
    assert renter().rent(1.0, runs).record.offer == good["id"]


def test_a_box_that_is_in_no_list_yet_is_given_back_all_the_same(
    vast: Vast, renter: Any, book: HostBook
) -> None:
    """Neither a list nor a destroy knows it for a minute, and it would run for hours."""
    vast.offer()
    vast.fate = lambda offer: "invisible"
    label = HostLabel.new("studio", book.id(), vast.now, HOUR)
    box = vast.made(next(iter(vast.offers.values())), {"label": str(label), "disk": 80})
    host = book.write(record(label, state="booting", instance=box.id))
    renter().give_back(host, "changed my mind")
    assert vast.billable() == []
    assert book.read(label.lease).state == "ended"


def test_a_box_whose_lease_was_given_up_while_it_was_made_is_destroyed(
    vast: Vast, renter: Any, book: HostBook, client: VastClient
) -> None:
    vast.offer()
    vast.offer()

    class Slow(VastClient):
        """Somebody gives the lease up while vast.ai makes its box."""

        def create(self, offer: Any, order: Any) -> Any:
            created = super().create(offer, order)
            if len(vast.boxes) == 1:
                book.change(HostLabel.read(order.label).lease, ("creating",), state="ended")
            return created

    host = renter(client=Slow(SecretStr(KEY), vast.url, paced=False)).rent(1.0, runs)
    assert [box.id for box in vast.billable()] == [host.box.id]
    assert len(vast.boxes) == 2


def test_a_box_that_another_found_by_its_label_is_waited_for_by_both(
    vast: Vast, renter: Any, book: HostBook
) -> None:
    vast.offer()
    vast.offer()

    class Slow(VastClient):
        """Another renter finds the box before the create's answer is here, and makes it ready."""

        def create(self, offer: Any, order: Any) -> Any:
            created = super().create(offer, order)
            renter().rent(1.0, runs)
            return created

    host = renter(client=Slow(SecretStr(KEY), vast.url, paced=False), max_hosts=2).rent(1.0, runs)
    assert [box.id for box in vast.billable()] == [host.box.id]
    assert len(records(book)) == 1


class Failing(LocalFolder):
    """A store that cannot be written after ``writes`` times."""

    writes = 1000

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        self.writes -= 1
        if self.writes < 0:
            raise StoreFault(f"{path} could not be written")
        return super().put_if(path, content, version)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_what_cannot_be_written_down_is_given_back(
    vast: Vast, renter: Any, tmp_path: Path, writes: int, warned: list[str]
) -> None:
    vast.offer()
    store = Failing(tmp_path)
    store.writes = writes
    with pytest.raises(StoreFault):
        renter(book=HostBook(store)).rent(1.0, runs)
    if writes == 3:  # it was written down that it boots: whoever comes next takes it up
        store.writes = 1000
        renter(book=HostBook(store)).rent(1.0, runs)
        assert len(vast.boxes) == 1
    else:
        assert vast.billable() == []


def test_a_host_is_given_back_though_it_cannot_be_written_down(
    vast: Vast, renter: Any, tmp_path: Path, warned: list[str]
) -> None:
    vast.offer()
    store = Failing(tmp_path)
    host = renter(book=HostBook(store)).rent(1.0, runs)
    store.writes = 0
    renter(book=HostBook(store)).give_back(host.record, "done")
    assert vast.billable() == []
    assert "could not be written" in warned[-1]


def test_a_box_that_vanishes_while_it_boots_is_not_waited_for(vast: Vast, renter: Any) -> None:
    vast.offer(machine_id=1)
    vast.offer(machine_id=2, dph_base=0.5)

    def answers(record: HostRecord, box: Instance) -> bool:
        if box.machine_id == 1:
            vast.boxes[box.id].gone = vast.now
            return False
        return runs(record, box)

    began = vast.now
    host = renter().rent(1.0, answers)
    assert (host.record.machine, vast.now - began < 1200) == (2, True)


def test_a_machine_that_the_reaper_gave_up_is_left_alone(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer(dph_base=0.2, machine_id=13)
    good = vast.offer(dph_base=0.4)
    label = HostLabel.new("studio", book.id(), vast.now, HOUR)
    book.write(record(label, state="ended", machine=13, failed_boot=True))
    assert renter().rent(1.0, runs).record.offer == good["id"]


def test_a_host_that_another_found_well_is_not_given_up(vast: Vast, renter: Any, book: HostBook) -> None:
    """Two wait for it; one makes it ready while the other's own probe fails."""
    vast.offer()

    def answers(waiting: HostRecord, box: Instance) -> str:
        book.change(waiting.lease, ("booting",), state="ready")
        return "the voice is bad"

    host = renter().rent(1.0, answers)
    assert (host.record.state, host.record.failed_boot) == ("ready", False)
    assert [box.id for box in vast.billable()] == [host.box.id]


def test_hosts_of_another_server_are_not_shared(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer()
    host = renter().rent(1.0, runs)
    book.change(host.record.lease, ("ready",), server="another")
    assert renter().reuse() is None
    book.change(host.record.lease, ("ready",), state="booting", booting_until=vast.now + 300)
    with pytest.raises(Budget):
        renter().rent(1.0, runs)


def test_hosts_made_with_something_else_are_of_no_use(vast: Vast, renter: Any, book: HostBook) -> None:
    """A host with the old image would make takes of the old image, under the keys of the new."""
    vast.offer()
    vast.offer()
    old = renter(serves="old").rent(1.0, runs).record
    assert renter(serves="new").reuse() is None
    assert [record.lease for record in renter(serves="new").unfit(1.0)] == [old.lease]
    again = renter(serves="old").reuse()
    assert (again.record.lease, renter(serves="old").unfit(1.0)) == (old.lease, [])
    # Neither one that boots and that nobody waits for, nor, at the cap, one that another waits for.
    for until in (0.0, vast.now + 300):
        book.change(old.lease, ("ready", "booting"), state="booting", booting_until=until)
        with pytest.raises(Budget):
            renter(serves="new").order(1.0)
        assert renter(serves="old").order(1.0).lease == old.lease


def test_a_host_whose_end_is_near_is_of_no_use_for_long_work(vast: Vast, renter: Any) -> None:
    vast.offer()
    host = renter(max_hours=6.0).rent(1.0, runs)
    vast.advance(2 * HOUR)
    assert renter(max_hours=6.0).reuse(hours=5.0) is None
    assert [record.lease for record in renter(max_hours=6.0).unfit(5.0)] == [host.record.lease]
    assert renter(max_hours=6.0).reuse(hours=3.0) is not None


@pytest.mark.parametrize("answer", [Never("voice anna has no recording"), Lacks("it has not got x.gguf")])
def test_what_no_host_will_ever_do_is_paid_for_once(
    vast: Vast, renter: Any, book: HostBook, answer: str
) -> None:
    for _ in range(3):
        vast.offer()
    with pytest.raises(BadInput, match=f"{answer}; no other host is rented"):
        renter().rent(1.0, lambda waiting, box: answer)
    (kept,) = records(book)
    assert (len(vast.boxes), vast.billable(), kept.failed_boot) == (1, [], False), (
        "its machine is as good as any"
    )


def test_a_market_without_a_good_offer_is_told(vast: Vast, renter: Any) -> None:
    vast.offer(dph_base=0.9)
    with pytest.raises(HostFault, match=r"vast.ai offers nothing that its rules allow, at \$0.60 an hour"):
        renter().rent(1.0, runs)


def test_a_host_that_is_ready_is_used_again(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer()
    assert renter().reuse() is None
    host = renter().rent(1.0, runs)
    again = renter().reuse()
    assert (again.record.lease, again.box.id) == (host.record.lease, host.box.id)
    assert renter().reuse(but=[host.record.lease]) is None
    vast.advance(11.5 * HOUR)
    assert renter().reuse() is None, "it has not an hour left"


def test_a_wrong_key_rents_nothing_and_forgets_nothing(vast: Vast, renter: Any, book: HostBook) -> None:
    vast.offer()
    with pytest.raises(AuthError):
        renter(client=VastClient(SecretStr("wrong"), vast.url, paced=False)).rent(1.0, runs)
    assert (records(book), vast.boxes) == ([], {})


@pytest.mark.parametrize(
    ("more", "said"),
    [({"image": ""}, "need an image or a template"), ({"max_total_per_hour": 0.1}, "expected at least max_per_hour"),
     ({"name": "a b"}, "name"), ({"proxy": "https://{instance}.proxy.vast.ai"}, "with {instance} and {port}")],
)  # fmt: skip
def test_rules_that_contradict_themselves_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RentRules.model_validate(RULES.model_dump() | more)


class Killed(BaseException):
    """Nobody catches it: what a SIGKILL leaves behind is what stands outside the process."""


class Mortal:
    """Something whose ``n``th call, counted with others', is the last: before it is done, or just after."""

    def __init__(self, inner: Any, life: list[int], *, after: bool) -> None:
        self._inner, self._life, self._after = inner, life, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def called(*args: Any, **more: Any) -> Any:
            self._life[0] -= 1
            if self._life[0] == 0 and not self._after:
                raise Killed
            outcome = found(*args, **more)
            if self._life[0] == 0:
                raise Killed
            return outcome

        return called


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fault", [None, "committed, then resets", "refused and made", "gone 404"])
def test_killed_anywhere_nothing_is_lost_and_never_two_are_rented(
    vast: Vast, client: VastClient, tmp_path: Path, renter: Any, fault: Fault | None, after: bool
) -> None:
    """Killed at the nth request or write, for every n; then another process rents, and the reaper does its rounds."""
    foreign = vast.made(vast.offer(), {"label": "somebody's"})
    for calls in range(1, 200):
        store = LocalFolder(tmp_path / str(calls))
        book, life = HostBook(store), [calls]
        # A record of old: a store without any is taken for the wrong one.
        book.write(record(HostLabel.new("studio", book.id(), vast.now - 9e6, 1), state="ended"))
        mortal = {
            "client": Mortal(client, life, after=after),
            "book": HostBook(Mortal(store, life, after=after), at_once=1),  # type: ignore[arg-type]
        }
        vast.offers.clear()
        for _ in range(4):
            vast.offer()
        if fault:
            vast.fail("create", fault)
        with suppress(Killed):
            renter(**mortal).rent(1.0, runs)
        vast._faults.clear()
        host = renter(book=book).reuse() or renter(book=book).rent(1.0, runs)
        assert len(vast.billable("callsheet:")) == 1, f"killed at call {calls}"
        assert vast.billable("callsheet:")[0].id == host.box.id
        renter(book=book).give_back(host.record, "done")
        reaper = Reaper(client, book, now=lambda: vast.now, sleep=lambda _: vast.advance(15.0))
        reaper.sweep()
        assert vast.billable() == [foreign], f"killed at call {calls}"
        if life[0] > 0:
            break
    else:
        pytest.fail("it never came to its end")
    assert calls > 15


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_and_never_begun_again_the_reaper_alone_puts_it_right(
    vast: Vast, client: VastClient, tmp_path: Path, renter: Any, after: bool
) -> None:
    for calls in range(1, 200):
        store = LocalFolder(tmp_path / str(calls))
        book, life = HostBook(store), [calls]
        book.write(record(HostLabel.new("studio", book.id(), vast.now - 9e6, 1), state="ended"))
        vast.offer()
        with suppress(Killed):
            renter(
                client=Mortal(client, life, after=after),
                book=HostBook(Mortal(store, life, after=after), at_once=1),  # type: ignore[arg-type]
            ).rent(1.0, runs)
        spent = vast.spent
        until = vast.now + (RULES.max_hours + 0.3) * HOUR
        while vast.billable() and vast.now < until:
            Reaper(client, book, now=lambda: vast.now, sleep=lambda _: vast.advance(15.0)).sweep()
            vast.advance(300.0)
        assert vast.billable() == [], f"killed at call {calls}"
        if life[0] > 0:
            break  # a host that is ready and that nobody uses goes with its label, in twelve hours
        assert vast.spent - spent < 13 * 0.43
    else:
        pytest.fail("it never came to its end")
