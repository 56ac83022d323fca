"""The Prefect UI on this machine with all that it needs: a server, deployments, a worker, and the store over HTTP.

    await serve_ui(Desk(work_pool="local", store="out"), print)     # until it is cancelled

From a terminal it is ``callsheet ui`` or ``make ui``. Each part is a process that ends with this one, and they end in order:
the worker with its runs first, the server that they report to last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from prefect.settings import PREFECT_API_URL, temporary_settings

from callsheet.errors import BadInput
from callsheet.home import callsheet_home
from callsheet.process import served_by
from callsheet.serving import listen
from flows.server import deliver_what_is_queued
from flows.server_process import home
from flows.setting_up import SetUp, Thing, set_up
from flows.worker_process import GRACE_SECONDS

#: Where people look for Prefect.
PORT = 4200
#: So many ports after it are tried.
_TRIES = 50


@dataclass(frozen=True)
class Desk:
    """What is asked for.

    Attributes:
        work_pool: the pool whose worker is started.
        store: the store that is served, and the default of the forms.
        port: of the UI; None for the first free one from 4200 on.
    """

    work_pool: str = "local"
    store: str = "out"
    port: int | None = None

    @property
    def where(self) -> tuple[bool, str]:
        """Whether the store can be served, and the store as every process understands it."""
        if "://" in self.store or self.store.startswith("block:"):
            return self.store.startswith("r2://"), self.store
        return True, str(Path(self.store).expanduser().resolve())


@dataclass(frozen=True)
class Addresses:
    """Where everything is. ``store`` is empty where it is a block's, whose keys are not at hand here; ``log`` is the worker's."""

    ui: str
    store: str
    log: Path
    things: list[Thing]


async def serve_ui(desk: Desk, told: Callable[[Addresses], None]) -> None:
    """Runs all of it until it is cancelled. ``told`` is given the addresses once everything is there.

    Raises:
        BadInput: the port is taken.
        HostFault: a part did not start.
    """
    port = free_port(PORT) if desk.port is None else _the_port(desk.port)
    is_served, store = desk.where
    async with AsyncExitStack() as stack:
        ui = await stack.enter_async_context(served_by("flows.server_process", str(port)))
        stack.enter_context(temporary_settings({PREFECT_API_URL: f"{ui}/api"}))
        stack.push_async_callback(deliver_what_is_queued)
        environment = {
            "PREFECT_API_URL": f"{ui}/api",
            "PREFECT_HOME": str(home()),
            # A run that is asked for begins within seconds, and says every half minute that it lives.
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        address = ""
        if is_served:
            arguments = (store, str(free_port(port + 1)), "--with-parent")
            address = await stack.enter_async_context(served_by("callsheet.store_server", *arguments))
            environment |= {"CALLSHEET_STORE_URL": address, "CALLSHEET_STORE_SERVED": store}
        log = callsheet_home() / "ui-worker.log"
        things = await set_up(SetUp(work_pool=desk.work_pool, store=store))
        await stack.enter_async_context(
            served_by(
                "flows.worker_process", desk.work_pool, env=environment, grace=GRACE_SECONDS + 5, log=log
            )
        )
        told(Addresses(ui, address, log, things))
        await asyncio.Event().wait()


def free_port(first: int) -> int:
    """The first free port of 127.0.0.1 from ``first`` on. Raises BadInput where there is none."""
    for port in range(first, first + _TRIES):
        if _is_free(port):
            return port
    raise BadInput(
        f"found ports {first} to {first + _TRIES - 1} taken; expected a free one, named with --port"
    )


def _the_port(port: int) -> int:
    if not _is_free(port):
        raise BadInput(f"port {port}: found it taken; expected a free one")
    return port


def _is_free(port: int) -> bool:
    try:
        listen(port).close()
    except (OSError, OverflowError):
        return False
    return True
