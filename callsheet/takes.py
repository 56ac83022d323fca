"""Takes: the media that steps made, their keys, and the sidecars that commit them.

A take's key is a hash of everything that decides what it is and of nothing else: no host, no time,
no file name. So the same key is the same take, in any batch, and is never made twice.

    key = take_key("speech", "lighttts", "cosyvoice2-0.5b", {"text": "Hello."}, requested_seed=None)
    sidecar_path("speech", key)      # 'takes/speech/9f….json'; written last, it commits the take
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from callsheet.fleet import StepKind
from callsheet.workflow import canonical


class Check(BaseModel):
    """One thing that was measured on an attempt.

    ``limit`` is the lowest and highest value that passes, None for an open end. ``piece`` is the number of
    the piece of a narration that it was measured on, None where there is one piece only.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    value: float | str | None
    limit: tuple[float | None, float | None] | str | None = None
    ok: bool
    piece: int | None = None

    @classmethod
    def within(cls, name: str, value: float, low: float | None = None, high: float | None = None) -> Check:
        """A check that passes when ``low <= value <= high``; NaN never passes."""
        ok = (low is None or value >= low) and (high is None or value <= high) and value == value
        return cls(name=name, value=round(value, 4) if value == value else None, limit=(low, high), ok=ok)

    @classmethod
    def equals(cls, name: str, value: str, wanted: str) -> Check:
        """A check that passes when the two are the same."""
        return cls(name=name, value=value, limit=wanted, ok=value == wanted)

    def __str__(self) -> str:
        where = "" if self.piece is None else f" of piece {self.piece + 1}"
        return f"{self.name}{where} is {self.value}, expected {self._limit_text()}"

    def _limit_text(self) -> str:
        if not isinstance(self.limit, tuple):
            return str(self.limit)
        low, high = self.limit
        if low is None:
            return f"at most {high:g}"
        return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


class SpokenPiece(BaseModel):
    """One piece of a narration in its file: where it lies, where speech is within it (seconds from the file's
    beginning), and the gain that brings it to the common level, in dB."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    speech_start: float
    speech_end: float
    gain_db: float = 0.0


class Attempt(BaseModel):
    """One making of a take. ``seconds`` is the time the engine took, ``length`` that of the media as it is used:
    of a narration, trimmed and without the pauses that the script asks for. ``file`` is empty where nothing was made, or
    it is not in the store yet."""

    n: int
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    seed: int | None = None
    host: str = ""
    lane: str = ""
    seconds: float = 0.0
    length: float = Field(default=0.0, description="seconds of media; 0 for a picture")
    pieces: tuple[SpokenPiece, ...] = Field(default=(), description="of a narration: where its pieces lie")
    cost: float = 0.0
    checks: tuple[Check, ...] = ()
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and all(check.ok for check in self.checks)

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, for a person."""
        return [str(check) for check in self.checks if not check.ok] + ([self.error] if self.error else [])


class Review(BaseModel):
    """What a person decided about an attempt, ``at`` what time; of another attempt it says nothing."""

    decision: Literal["accept", "retake", "reject"]
    attempt: int
    note: str = ""
    at: str


class Sidecar(BaseModel):
    """How a take was made: the file that commits it."""

    key: str
    kind: StepKind
    engine: str
    revision: str
    requested_seed: int | None = None
    inputs: dict[str, Any]
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="takes it was made from: key to the sha256 of the file that was used",
    )
    chosen: int
    needs_review: bool = False
    review: Review | None = None
    attempts: list[Attempt]

    @property
    def take(self) -> Attempt:
        """The chosen attempt."""
        return next(attempt for attempt in self.attempts if attempt.n == self.chosen)

    def is_decided(self, decision: str) -> bool:
        """Whether a person said so of the attempt that is the take."""
        return self.review is not None and (self.review.decision, self.review.attempt) == (
            decision,
            self.chosen,
        )

    @property
    def cost(self) -> float:
        """What all attempts cost together, in $."""
        return sum(attempt.cost for attempt in self.attempts)


def take_key(
    kind: StepKind,
    engine: str,
    revision: str,
    inputs: Mapping[str, Any],
    requested_seed: int | None = None,
    salt: str = "",
) -> str:
    """The take's key: sha256 over canonical JSON of all that decides it, in hex.

    Args:
        inputs: normalised text and the normaliser's version; ``sha256:…`` of every input file;
            ``take:<key>`` for an input that is itself a take; a workflow's hash and variables.
        requested_seed: the seed that the script asks for, not the one that an attempt used.
        salt: any text, when a person asked for another take of the same thing.
    """
    material: dict[str, Any] = {
        "kind": kind,
        "engine": engine,
        "revision": revision,
        "inputs": dict(inputs),
        "seed": requested_seed,
    }
    if salt:
        material["salt"] = salt
    return hashlib.sha256(canonical(material).encode()).hexdigest()


def attempt_seed(key: str, requested: int | None, n: int) -> int:
    """The seed of attempt ``n``: the requested one first, then others that depend on key and number alone."""
    if requested is not None and n == 0:
        return requested
    return int.from_bytes(hashlib.sha256(f"{key}.{n}".encode()).digest()[:6], "big")


def attempt_path(kind: StepKind, key: str, n: int, suffix: str, run: str = "") -> str:
    """Where attempt ``n`` lies in the store. With ``run``, no other run writes there."""
    return f"takes/{kind}/{key}.{n}{'-' if run else ''}{run}{suffix}"


def sidecar_path(kind: StepKind, key: str) -> str:
    """Where the sidecar lies in the store."""
    return f"takes/{kind}/{key}.json"


def best_of(attempts: list[Attempt]) -> Attempt:
    """The attempt to keep when none passed: fewest failed checks, then the earliest."""
    made = [attempt for attempt in attempts if attempt.error is None]
    return min(made, key=lambda attempt: (sum(not check.ok for check in attempt.checks), attempt.n))
