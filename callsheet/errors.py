"""Every failure Callsheet knows, and what is done about each.

CallsheetError          the root; never raised itself
├── BadInput            the script, a voice, a setting: fail the shot before anything is spent
│   └── Refused         an engine refused the request: another lane may not, else fail the shot
├── HostLacks           a model file or node this host does not have: another lane, else fail the shot
├── Transient           reset, 502, cut body, lost prompt: retry with backoff, then another lane
├── OutOfMemory         the GPU's memory is full: free it, retry once, then another lane
├── HostFault           CUDA fault, unreachable, its disk full: quarantine the host, requeue the step
├── BadOutput           silent, clipped, black, frozen, wrong length: retake with another seed
├── AssemblyFault       our own ffmpeg could not build a clip: fail the shot
├── StoreFault          the store cannot be written (disk full, access denied): stop the batch
├── LeaseLost           another process has this shard now: commit nothing, stop
└── Budget              estimate or meter over the cap: start no engine any more, finish what is paid for

A class says *what happened*; ``policy_of(error)`` says *what is done*, in one table below, and the
scheduler asks that table instead of testing for classes.

    >>> policy_of(Transient("the body was cut after 4,096 bytes")).retries_here
    3
"""

from __future__ import annotations

from dataclasses import dataclass


class CallsheetError(Exception):
    """The root of everything Callsheet raises on purpose. ``str(error)`` is fit for a producer to read."""

    @property
    def name(self) -> str:
        """The class's name, as the ``error`` field of the manifest and of ``run --json`` has it."""
        return type(self).__name__


class BadInput(CallsheetError):
    """Something a person gave is wrong: the message names the row, column or file, and what would be right."""


class Refused(BadInput):
    """An engine answered that the request is wrong (4xx). It may be, or the server may be another than we think."""


class HostLacks(CallsheetError):
    """This host has not got a model file or a node that the step needs; the message names it."""


class Transient(CallsheetError):
    """A failure that the same request may well survive: connection reset, 5xx, cut body, time-out."""


class OutOfMemory(CallsheetError):
    """The engine reported that the GPU's memory is full."""


class HostFault(CallsheetError):
    """The host, not the request, is broken: unreachable, CUDA fault, disk full."""


class BadOutput(CallsheetError):
    """The engine delivered, and what it delivered cannot be used."""


class AssemblyFault(CallsheetError):
    """ffmpeg failed on this machine while a clip or programme was built."""


class StoreFault(CallsheetError):
    """The store cannot be written or read; going on would spend money on takes that cannot be kept.

    Attributes:
        may_pass: whether the same request may well get through later: the store is busy, or out of reach.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class LeaseLost(CallsheetError):
    """The lease under which a shard is made is not ours any more; another process may be making it."""


class Budget(CallsheetError):
    """The estimate or the meter passed ``max_cost``."""


@dataclass(frozen=True)
class Policy:
    """What is done about a failure.

    Attributes:
        retries_here: how often the same step is tried again on the same lane, with backoff and jitter.
        other_lanes: whether another lane is tried when this one gave up.
        retake: whether the step is made again with another seed, and the best take kept in the end.
        quarantine: whether the host takes no more steps of this batch.
        stops_engines: whether no engine is asked any more; what is paid for is assembled and published.
        stops_assembly: whether nothing is assembled any more either, because it could not be kept.
    """

    retries_here: int = 0
    other_lanes: bool = False
    retake: bool = False
    quarantine: bool = False
    stops_engines: bool = False
    stops_assembly: bool = False


POLICIES: dict[type[Exception], Policy] = {
    BadInput: Policy(),
    Refused: Policy(other_lanes=True),
    HostLacks: Policy(other_lanes=True),
    Transient: Policy(retries_here=3, other_lanes=True),
    OutOfMemory: Policy(retries_here=1, other_lanes=True),
    HostFault: Policy(other_lanes=True, quarantine=True),
    BadOutput: Policy(retake=True),
    AssemblyFault: Policy(),
    StoreFault: Policy(stops_engines=True, stops_assembly=True),
    LeaseLost: Policy(stops_engines=True, stops_assembly=True),
    Budget: Policy(stops_engines=True),
}
#: A failure of no known class is a defect of ours: it costs its shot, never a retry and never the batch.
UNKNOWN = Policy()


def policy_of(error: BaseException) -> Policy:
    """The policy of ``error``'s class, or of the nearest class above it."""
    for cls in type(error).__mro__:
        if cls in POLICIES:
            return POLICIES[cls]
    return UNKNOWN


def name_of(error: BaseException) -> str:
    """The name that reports give ``error``: its class, or ``InternalError`` where it is not one of ours."""
    return error.name if isinstance(error, CallsheetError) else "InternalError"


def reason_of(error: BaseException) -> str:
    """A one-line reason fit for a table: the message, or class and message where it is not one of ours."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, CallsheetError) else f"{type(error).__name__}: {text}"
