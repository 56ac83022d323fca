"""What was made waits for the store, and not the store for it; but not without end."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callsheet.errors import StoreFault
from callsheet.patience import Patience
from callsheet.store import LocalFolder
from callsheet.timing import clock
from tasks import deliveries as module
from tasks.deliveries import Deliveries, LocalCopies


class Gate(LocalFolder):
    """A folder that takes nothing while its gate is shut, and fails as long as it is told to."""

    at_once = 2
    is_shared = True

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.faults: list[StoreFault] = []
        self.at_work = self.most = 0

    def put(self, path: str, content: Path | bytes, sent: Any = None, *, replace: bool = True) -> str:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            self.gate.wait(30)
            if self.faults:
                raise self.faults.pop()
            return super().put(path, content, sent, replace=replace)
        finally:
            self.at_work -= 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "store")
    yield gate
    gate.gate.set()


def media(folder: Path, name: str, size: int = 100) -> Path:
    path = folder / name
    path.write_bytes(bytes(size))
    return path


async def has_room(deliveries: Deliveries) -> bool:
    try:
        async with asyncio.timeout(0.1):
            await deliveries.room()
    except TimeoutError:
        return False
    return True


async def test_lanes_go_on_until_more_bytes_wait_than_may(store: Gate, tmp_path: Path) -> None:
    deliveries = Deliveries(store, most_bytes=250)
    store.gate.clear()
    first = [asyncio.create_task(deliveries.put(f"t/{n}", media(tmp_path, f"{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    assert await has_room(deliveries)
    third = asyncio.create_task(deliveries.put("t/2", media(tmp_path, "2")))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(deliveries.room())
    assert not await has_room(deliveries)
    store.gate.set()
    await waiting
    kept = await asyncio.gather(*first, third)
    assert [one["bytes"] for one in kept] == [100] * 3
    assert len({one["sha256"] for one in kept}) == 1
    assert store.most <= 2
    deliveries.close()


async def test_so_many_files_wait_and_no_more(
    store: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 2)
    deliveries = Deliveries(store, most_bytes=1e9)
    store.gate.clear()
    puts = [asyncio.create_task(deliveries.put(f"t/{n}", media(tmp_path, f"{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    assert not await has_room(deliveries)
    store.gate.set()
    await asyncio.gather(*puts)
    assert await has_room(deliveries)
    deliveries.close()


async def test_a_store_that_is_away_is_waited_for(
    store: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.01")
    deliveries = Deliveries(store, most_bytes=1e9)
    store.faults = [StoreFault("busy", may_pass=True) for _ in range(5)]
    await deliveries.put("t/a", media(tmp_path, "a"))
    assert store.get("t/a") == bytes(100)
    store.faults = [StoreFault("refused")]
    with pytest.raises(StoreFault, match="refused"):
        await deliveries.put("t/b", media(tmp_path, "b"))
    assert await has_room(deliveries)
    deliveries.close()


async def test_what_is_short_does_not_wait_behind_uploads(store: Gate, tmp_path: Path) -> None:
    deliveries = Deliveries(store, most_bytes=1e9)
    store.gate.clear()
    puts = [asyncio.create_task(deliveries.put(f"t/{n}", media(tmp_path, f"{n}"))) for n in range(8)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert await deliveries.call(lambda: store.size("t/none")) is None
    store.gate.set()
    await asyncio.gather(*puts)
    deliveries.close()


async def test_what_another_run_put_there_is_not_replaced(store: Gate, tmp_path: Path) -> None:
    deliveries = Deliveries(store, most_bytes=1e9)
    store.put("t/a.wav", b"another's, which is committed")
    kept = await deliveries.put("t/a.wav", media(tmp_path, "a"))
    assert kept["file"] != "t/a.wav"
    assert store.get(kept["file"]) == bytes(100)
    assert store.get("t/a.wav") == b"another's, which is committed"
    deliveries.close()


def test_patience_is_with_the_store_and_not_with_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.01")
    patience = Patience(seconds=30)  # 0.3 s

    def away() -> None:
        raise StoreFault("busy", may_pass=True)

    began = clock()
    for _ in range(20):
        with pytest.raises(StoreFault):
            patience(away)
    assert clock() - began < 3
    assert patience(lambda: 1) == 1
    asked: list[int] = []

    def back_soon() -> int:
        asked.append(1)
        if len(asked) < 3:
            away()
        return len(asked)

    assert patience(back_soon) == 3


async def test_nobody_waits_when_it_is_closed(store: Gate, tmp_path: Path) -> None:
    deliveries = Deliveries(store, most_bytes=1e9)
    store.faults = [StoreFault("busy", may_pass=True) for _ in range(50)]
    put = asyncio.create_task(deliveries.put("t/a", media(tmp_path, "a")))
    await asyncio.sleep(0.05)
    deliveries.close()
    with pytest.raises(StoreFault, match="busy"):
        await put


def test_what_is_built_from_stays_here_while_there_is_room(store: Gate, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    copies = LocalCopies(store, scratch, most_bytes=150)
    for name in ("a", "b", "c"):
        store.put(f"t/{name}", bytes(100))
    copies.keep("t/a", media(tmp_path, "a"), wanted=True)
    copies.keep("t/b", media(tmp_path, "b"), wanted=True)  # no room
    copies.keep("t/c", media(tmp_path, "c"), wanted=False)
    assert [path.name for path in (scratch / "t").iterdir()] == ["a"]
    assert not list(tmp_path.glob("[abc]"))
    copies.drop("t/a")
    copies.drop("t/a")
    assert not (scratch / "t/a").exists()
    copies.keep("t/b", media(tmp_path, "b"), wanted=True)
    assert (scratch / "t/b").exists()


def test_of_a_folder_nothing_is_copied_or_removed(tmp_path: Path) -> None:
    store = LocalFolder(tmp_path / "store")
    store.put("t/a", b"x")
    copies = LocalCopies(store, tmp_path / "scratch", most_bytes=1e9)
    copies.keep("t/a", media(tmp_path, "a"), wanted=True)
    assert copies.read("t/a") == store.root / "t/a"
    copies.drop("t/a")
    assert store.get("t/a") == b"x"
