"""What those on the stage act upon: vast.ai, its client, the store, and Prefect's limits. At each call another may act."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import greenlet  # comes with SQLAlchemy, which Prefect needs
import pytest
from pydantic import SecretStr

from callsheet.errors import StoreFault
from callsheet.store import LocalFolder, StoredFile
from callsheet.vastai import VastClient
from tests.fakes.vast import KEY, Box, Endpoint, Fault, Vast
from tests.host_play.stage import Actor, Killed, Stage

#: Of every wait, and of a client's time-outs, which take real time where something hangs: 0.3 s, and 0.6 s of a create. On a
#: machine that stands still for so long a play has one fault more than was drawn, which must do no harm either.
SCALE, TIMEOUT_SCALE = 0.002, 0.01
#: How long a slot of Prefect's outlives who held it (`tasks.locks.LEASE_SECONDS`).
SLOT_SECONDS = 60.0


class Market(Vast):
    """A vast.ai whose faults are at places of the play, and that tells what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: list[float] = []
        self.was_made: Callable[[Box], None] = lambda box: None
        self._open: set[Any] = set()

    def plan(self, faults: tuple[tuple[Endpoint, int, Fault, int], ...]) -> None:
        """Each request to an endpoint takes the next of its faults; most have none. One hangs at most: that takes real time."""
        hangs = 0
        for endpoint, spared, fault, times in faults:
            if "hangs" in fault:
                hangs, times = hangs + 1, 1
                fault = fault if hangs == 1 else "resets"
            self._faults.setdefault(endpoint, []).extend([None] * spared + [fault] * times)  # type: ignore[arg-type]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keeps hold of what hangs: asyncio itself does not."""
        self._open.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):
            await super()._connected(reader, writer)

    def made(self, offer: dict[str, Any], order: dict[str, Any]) -> Box:
        box = super().made(offer, order)
        self.was_made(box)
        return box

    def _list(self, request: Any, identity: int, fault: Fault | None) -> tuple[int, Any]:
        if fault == "empty and said so" and self._shown():
            self.lies.append(self.now)
        return super()._list(request, identity, fault)


@contextmanager
def time_scale(scale: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CALLSHEET_TIME_SCALE", str(scale))
        yield


class SteppedClient(VastClient):
    """The real client; at each of its requests another may act."""

    def __init__(self, actor: Actor, url: str) -> None:
        with time_scale(TIMEOUT_SCALE):
            super().__init__(SecretStr(KEY), url, paced=False)
        self._actor = actor

    def _safely(self, endpoint: Any, ask: Callable[[], Any]) -> Any:
        return super()._safely(endpoint, lambda: self._actor.call(ask))

    def create(self, offer: Any, order: Any) -> Any:
        return self._actor.call(lambda: super(SteppedClient, self).create(offer, order))

    def logs(self, identity: int, lines: int = 200) -> str:
        """The SDK waits 0.3 real seconds for them, and nothing depends on what they say."""
        return str(self._actor.call(lambda: "the engine did not start"))


class Storeroom:
    """The store behind everybody's `Shelf`.

    Attributes:
        cannot: "read", "write": what it cannot do just now.
        made: the paths in it, in the order in which they were made.
        was_written: told of each file that is written by a condition, and by whom.
    """

    def __init__(
        self, folder: LocalFolder, planned: tuple[tuple[int, str], ...], *, newest_first: bool
    ) -> None:
        """``planned``: calls that are spared before it, and what goes wrong. It lists in the order of ``made``, or backwards."""
        self.folder = folder
        self.cannot: set[str] = set()
        self.made: dict[str, None] = {}
        self.was_written: Callable[[str, bytes, Actor], None] = lambda path, content, by: None
        self._planned = [one for spared, what in planned for one in [""] * spared + [what]]
        self._newest_first = newest_first

    def begin(self, what: Literal["read", "list", "write"]) -> str:
        """A call begins. Returns what will go wrong with it.

        Raises:
            StoreFault: it fails before anything is done.
        """
        fault = self._planned.pop(0) if self._planned else ""
        if fault == f"{what} fails" or ("write" if what == "write" else "read") in self.cannot:
            raise StoreFault(f"the store: {what} failed")
        return fault

    def files(self, prefix: str) -> list[StoredFile]:
        files = {file.path: file for file in self.folder.list(prefix)}
        order = list(self.made)[:: -1 if self._newest_first else 1]
        return [files[path] for path in order if path in files]


class Shelf:
    """The store as one process sees it; at each call another may act."""

    is_shared = True

    def __init__(self, actor: Actor, room: Storeroom) -> None:
        self._actor, self._room = actor, room

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        def put() -> bool:
            fault = self._room.begin("write")
            done = self._room.folder.put_if(path, content, version)
            if done:
                self._room.made.setdefault(path)
                self._room.was_written(path, content, self._actor)
            if fault == "written and fails":
                raise StoreFault(f"{path} may have been written")
            return done and fault != "written and says no"

        return self._actor.call(put)

    def put(self, path: str, content: bytes) -> None:
        """Logs are put; what comes of them is nobody's business here."""

        def put() -> None:
            self._room.begin("write")
            self._room.folder.put(path, content)

        self._actor.call(put)

    def version(self, path: str) -> str | None:
        def version() -> str | None:
            self._room.begin("read")
            return self._room.folder.version(path)

        return self._actor.call(version)

    def get(self, path: str) -> bytes:
        def get() -> bytes:
            self._room.begin("read")
            return self._room.folder.get(path)

        return self._actor.call(get)

    def delete(self, path: str) -> None:
        def delete() -> None:
            self._room.begin("write")
            self._room.folder.delete(path)

        self._actor.call(delete)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        def files() -> list[StoredFile]:
            self._room.begin("list")
            return self._room.files(prefix)

        yield from self._actor.call(files)

    def __str__(self) -> str:
        return "shelf"


class Slots:
    """Prefect's limits, as far as renting needs them: one order at a time, and who uses a host."""

    def __init__(self, stage: Stage, *, lock_holds: bool) -> None:
        self._stage, self._lock_holds = stage, lock_holds
        self._held: list[list[Any]] = []  # name, actor and life, slots, until
        stage.mourners.append(self._mourn)

    def _mourn(self, actor: Actor) -> None:
        for held in self._held:
            if held[1] == (actor, actor.life):
                held[3] = min(held[3], self._stage.now + SLOT_SECONDS)

    def holders(self, name: str) -> list[tuple[Actor, int]]:
        """Those who work on it. Who holds all its slots does not: it is giving it back, and the reaper may help."""
        return [
            held[1] for held in self._held if held[0] == name and held[3] > self._stage.now and held[2] != 1
        ]

    def take(self, name: str, actor: Actor, most: int) -> bool:
        """Takes a slot of so many; all of them where ``most`` is 1."""
        taken = [held for held in self._held if held[0] == name and held[3] > self._stage.now]
        if taken and (most == 1 or any(held[2] == 1 for held in taken)):
            return False
        self._held.append([name, (actor, actor.life), most, float("inf")])
        return True

    def release(self, name: str, actor: Actor) -> None:
        self._held = [held for held in self._held if (held[0], held[1]) != (name, (actor, actor.life))]

    @contextmanager
    def order(self, actor: Actor) -> Iterator[None]:
        """The lock that lets one order at a time through; a lost one is nobody's to wait for."""
        while self._lock_holds and not actor.call(lambda: self.take("order", actor, 1)):
            actor.sleep(5.0)
        try:
            yield
        finally:
            # A process that is killed releases nothing: that raises again, and its slot ends by itself.
            if not isinstance(sys.exc_info()[1], Killed | greenlet.GreenletExit):
                actor.call(lambda: self.release("order", actor))
