"""One process at a time has a lease of the store, whatever becomes of the others."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from callsheet.errors import LeaseLost, StoreFault
from callsheet.r2 import R2Store
from callsheet.store import Store
from callsheet.store_lease import LEASE_SECONDS, StoreLease, lease_path
from tests.buckets import bucket
from tests.fakes.proxy import FaultyProxy

PATH = lease_path("demo")


@pytest.fixture
def lapses(monkeypatch: pytest.MonkeyPatch) -> float:
    """A lease lapses after so many seconds."""
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.01")
    return LEASE_SECONDS * 0.01


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_another_waits_until_it_is_given_back(store: Store) -> None:
    mine, other = StoreLease(store, PATH), StoreLease(store, PATH)
    assert mine.try_take()
    mine.check()
    assert not other.try_take()
    assert mine.renew()
    with pytest.raises(LeaseLost, match="another run is at work on the batch"):
        other.check()
    mine.give_back()
    assert other.try_take()
    assert not mine.renew()
    with pytest.raises(LeaseLost):
        mine.check()


def test_of_many_one_has_it(store: Store) -> None:
    leases = [StoreLease(store, PATH) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda lease: lease.try_take(), leases)) == 1


def test_who_does_not_renew_loses_it_and_learns_of_it(store: Store, lapses: float) -> None:
    mine, other = StoreLease(store, PATH), StoreLease(store, PATH)
    assert mine.try_take()
    assert not other.try_take()
    wait(lapses / 2)
    assert mine.renew()
    assert not other.try_take()  # from now on it is unchanged
    assert not other.try_take()
    wait(lapses * 1.2)
    assert not mine.is_ours
    assert other.try_take()
    with pytest.raises(LeaseLost):
        mine.check()
    assert other.is_ours
    mine.give_back()  # of what is another's nothing is given back
    assert not StoreLease(store, PATH).try_take()


def test_a_lease_that_lapsed_and_nobody_took_is_ours_again(store: Store, lapses: float) -> None:
    mine = StoreLease(store, PATH)
    assert mine.try_take()
    wait(lapses * 1.2)
    assert not mine.is_ours
    mine.check()
    assert mine.is_ours


def test_a_file_that_is_no_lease_is_nobodys(store: Store) -> None:
    store.put(PATH, b"nonsense")
    assert StoreLease(store, PATH).try_take()


def test_an_answer_that_was_lost_is_not_another_holder(s3: str) -> None:
    direct = bucket(s3, "lost")
    with FaultyProxy(s3) as proxy:
        remote = R2Store(replace(direct.settings, endpoint=proxy.url))
        for _ in range(2):
            proxy.fail("lease.json", "done, then reset", after=1)
        lease = StoreLease(remote, PATH)
        assert lease.try_take()
        assert lease.renew()
        assert not StoreLease(direct, PATH).try_take()


def test_a_renewal_whose_answer_was_lost_is_ours_yet(store: Store) -> None:
    """The request got through, and what came back was a fault: nobody else has the lease for that."""
    lossy: Any = Lossy(store)
    lease = StoreLease(lossy, PATH)
    assert lease.try_take()
    lossy.fails = True
    with pytest.raises(StoreFault):
        lease.renew()
    lossy.fails = False
    assert lease.renew()
    lease.check()


def test_who_lost_it_does_not_renew_over_its_new_holder(store: Store, lapses: float) -> None:
    mine, other = StoreLease(store, PATH), StoreLease(store, PATH)
    assert mine.try_take()
    assert not other.try_take()
    wait(lapses * 1.2)
    assert other.try_take()
    assert not mine.renew()
    assert not mine.renew()
    assert other.renew()


class Lossy:
    """A store whose conditional writes get through, and whose answers to them do not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        done = self._store.put_if(path, content, version)
        if self.fails:
            raise StoreFault("connection reset", may_pass=True)
        return done


@pytest.mark.slow
def test_a_store_that_is_away_is_no_lost_lease(s3: str, lapses: float) -> None:
    direct = bucket(s3, "away")
    with FaultyProxy(s3) as proxy:
        lease = StoreLease(R2Store(replace(direct.settings, endpoint=proxy.url)), PATH)
        assert lease.try_take()
        proxy.fail("lease.json", "500", times=1000)
        wait(lapses)
        with pytest.raises(StoreFault):
            lease.check()
        proxy.fail_no_more()
        lease.check()
