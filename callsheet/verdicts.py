"""What is said of a box that boots: it answers, not yet, never, or no box that is made like it ever will.

    answers(record, box)        # True; NotYet("its agent says: loading"); "its token is refused"; Never("voice anna …")

Which of them decides what it costs: a box that will answer is waited for, one that never will is given back and the next offer is
taken, and where no other would do better, nothing more is rented.
"""

from __future__ import annotations

from callsheet.vastai_answers import Instance

#: What the Docker daemon says when a box will never run. The first are the image's fault: another machine does no better.
_BAD_IMAGE = ("manifest unknown", "pull access denied", "repository does not exist", "unauthorized")
_BAD_MACHINE = (
    "error response from daemon",
    "failed to pull image",
    "no space left on device",
    "unexpected eof",
    "oci runtime",
)
_GONE = ("stopped", "exited", "offline", "unknown", "frozen")


class NotYet(str):
    """Why a box does not answer yet."""

    __slots__ = ()


class Lacks(NotYet):
    """What a box has not got yet. Where that lasts until its deadline, no other will have it."""

    __slots__ = ()


class Suspect(str):
    """Why a box never will answer: its own fault, or that of what was asked. A second box that says so tells."""

    __slots__ = ()


class Never(str):
    """Why no box that is made like this one ever will: another would be paid for in vain."""

    __slots__ = ()


def why_never(box: Instance) -> str:
    """Why a box will never run, by what the provider says of it; empty where it may."""
    said = box.message.lower()
    if any(text in said for text in _BAD_IMAGE):
        return Never(box.message)
    if any(text in said for text in _BAD_MACHINE):
        return box.message
    return f"it is {box.status}" if box.status in _GONE else ""
