"""The log of a run: one line for each thing that matters, which names batch, shot, step, lane and host.

    with batch_log("demo"):
        run_logger().info("begins: 11 shots, 37 takes, of which 0 are there")
        run_logger().info("%s", take_line(step, sidecar))

    demo: begins: 11 shots, 37 takes, of which 0 are there
    demo: lh-01 speech on a10-1/lighttts/0: attempt 0, 2.1 s

A lane's name has its host and engine in it. Whatever is said within `batch_log` begins with the batch, on whatever
task and in whatever thread's name it is said.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from callsheet.errors import CallsheetError
from callsheet.fleet import Lane
from callsheet.plan import Step
from callsheet.takes import Sidecar

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[Any]
else:
    _Adapter = logging.LoggerAdapter

_batch: ContextVar[str] = ContextVar("callsheet_batch", default="")
#: What Prefect says of every task run: with three of them for a shot, 10,000 shots would be 30,000 lines.
_ENDED = "Finished in state"
#: What it says, with a traceback, of one whose last try failed; a retry it says in one line, which stays.
_FAILED = "Task run failed with"


@contextlib.contextmanager
def batch_log(batch: str) -> Iterator[None]:
    """While the block lasts, lines begin with the batch, and Prefect says of task runs only that they are tried again."""
    # Added once and left there: outside of a batch it lets everything through.
    get_logger("prefect.task_runs").addFilter(_is_news)
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nobody else says it: what came of a task run stands in its state, and in our line about its step."""
    said = str(record.msg)
    return not (_batch.get() and (said.startswith(_ENDED) or (said.startswith(_FAILED) and record.exc_info)))


class _OfBatch(_Adapter):
    """Puts the batch before each line."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"{self.extra['batch']}: {msg}" if self.extra else msg, kwargs


def run_logger() -> logging.Logger | _Adapter:
    """The log of the run; that of Callsheet where there is none, as in the hook of a run that died."""
    logger: logging.Logger | _Adapter
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = get_logger("callsheet")
    batch = _batch.get()
    return _OfBatch(logger, {"batch": batch}) if batch else logger


def log_fault(text: str, error: BaseException | None, level: int = logging.WARNING) -> None:
    """A line about a failure; with a traceback where it is a defect of ours, which nobody expects."""
    is_defect = error is not None and not isinstance(error, CallsheetError)
    run_logger().log(logging.ERROR if is_defect else level, "%s", text, exc_info=error if is_defect else None)


def step_line(step: Step, lane: Lane | str | None, what: str) -> str:
    """``lh-01 speech on a10-1/lighttts/0: attempt 0, 2.1 s``; without a lane it was done on this machine."""
    name = lane.name if isinstance(lane, Lane) else lane
    return f"{step.name} on {name}: {what}" if name else f"{step.name}: {what}"


def take_line(step: Step, sidecar: Sidecar) -> str:
    """A take is made: which attempt it is, and the seconds of its engine or of building it; and why it is to be reviewed."""
    take = sidecar.take
    what = f"attempt {take.n}, {take.seconds:.1f} s"
    if sidecar.needs_review:
        what += f", is kept for review: {'; '.join(take.faults)}"
    return step_line(step, take.lane, what)
