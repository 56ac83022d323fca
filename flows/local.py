"""A batch produced from a terminal: the flow, with a Prefect server of its own where none is configured.

    summary = run(parameters, watcher=bar, announce=print)

This is the one door through which the command line reaches the flows.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

from prefect.exceptions import TerminationSignal
from prefect.settings import get_current_settings

from callsheet.errors import BadInput
from callsheet.health import Health
from callsheet.manifest import Summary
from callsheet.parameters import ProduceParameters
from flows import setting_up
from flows.check_hosts import CheckHostsParameters, check_hosts
from flows.produce import produce
from flows.reap import ReapParameters, deploy_reap
from flows.server import prefect_server
from flows.setting_up import SetUp, Thing
from flows.ui import Addresses, Desk, serve_ui
from tasks.watching import Watcher, watched_by


class Terminated(BaseException):
    """The process was told to end (SIGTERM); what is done is kept."""


def run(parameters: ProduceParameters, *, watcher: Watcher, announce: Callable[[str], None]) -> Summary:
    """Produces the batch and returns what came of it.

    Args:
        watcher: is told of every change.
        announce: is given the address of the Prefect UI.

    Raises:
        CallsheetError: nothing was started, or nothing more can be.
        Terminated, KeyboardInterrupt: the process was told to stop.
    """
    try:
        with _terminable():
            return asyncio.run(_run(parameters, watcher, announce))
    except TerminationSignal:
        raise Terminated from None


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated.

    While a flow runs Prefect has a handler of its own, which hands on to the one before: by default the system's, that
    ends the process on the spot.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hosts(parameters: CheckHostsParameters) -> list[Health]:
    """Checks a fleet's hosts. Raises CallsheetError where that could not be done."""

    async def check() -> Any:
        async with prefect_server():
            state: Any = await check_hosts(parameters, return_state=True)
        return await state.aresult(raise_on_failure=False)

    return cast(list[Health], _or_raise(asyncio.run(check())))


def schedule_reap(work_pool: str, parameters: ReapParameters) -> None:
    """Schedules the sweep on the configured Prefect server.

    Raises:
        BadInput: none is configured, or it has no such work pool.
    """
    _check_configured("that is to keep the schedule")
    asyncio.run(deploy_reap(work_pool, parameters))


def set_up(asked: SetUp) -> list[Thing]:
    """Makes what is missing on the configured Prefect server. Raises BadInput where none is configured."""
    _check_configured("that is to be set up")
    return asyncio.run(setting_up.set_up(asked))


def ui(desk: Desk, told: Callable[[Addresses], None], ending: Callable[[], None]) -> None:
    """Runs the Prefect UI with all that it needs, until Ctrl-C or SIGTERM. Raises BadInput, HostFault."""
    asyncio.run(_until_told(serve_ui(desk, told), ending))


async def _until_told(work: Coroutine[Any, Any, None], ending: Callable[[], None]) -> None:
    """Runs ``work`` until it ends or a signal tells it to; a second signal changes nothing, for it is being ended."""
    working = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _cancel_once(working, ending))
    with contextlib.suppress(asyncio.CancelledError):
        await working


def _cancel_once(working: asyncio.Future[None], ending: Callable[[], None]) -> Callable[[], None]:
    told: list[bool] = []

    def cancel() -> None:
        if not told:
            told.append(True)
            ending()
            working.cancel()

    return cancel


def _check_configured(which: str) -> None:
    if not get_current_settings().api.url:
        raise BadInput(f"found no PREFECT_API_URL; expected the address of the Prefect server {which}")


def _or_raise(outcome: Any) -> Any:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def _run(parameters: ProduceParameters, watcher: Watcher, announce: Callable[[str], None]) -> Summary:
    async with prefect_server() as ui:
        announce(ui)
        with watched_by(watcher):
            state: Any = await produce(parameters, return_state=True)
    return cast(Summary, _or_raise(await state.aresult(raise_on_failure=False)))
