"""How an engine of a host is: what it says of itself, and what it does when it is asked to work."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from callsheet.canary import Heard


class Health(BaseModel):
    """One engine, as it was found.

    Attributes:
        engine: host and engine, ``a10-1/lighttts``.
        models: what it lists; CosyVoice's own server lists nothing.
        latency: seconds until a sentence of the canary was whole; None where none was asked for.
        real_time_factor: seconds for a second of its sound.
        reason: why it is not well.
    """

    model_config = ConfigDict(frozen=True)

    engine: str
    kind: str
    ok: bool
    models: tuple[str, ...] = ()
    latency: float | None = None
    real_time_factor: float | None = None
    reason: str = ""

    @classmethod
    def of(cls, engine: str, kind: str, models: list[str], heard: Heard | None) -> Health:
        """A server that answers, and what its sentence was like."""
        factor = heard.real_time_factor if heard else None
        return cls(
            engine=engine,
            kind=kind,
            ok=not (heard and heard.faults),
            models=tuple(models),
            latency=round(heard.latency, 3) if heard else None,
            real_time_factor=round(factor, 3) if factor is not None else None,
            reason="; ".join(heard.faults) if heard else "",
        )

    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        return {
            "engine": self.engine,
            "kind": self.kind,
            "well": "yes" if self.ok else "no",
            "models": ", ".join(self.models) or "-",
            "seconds": "-" if self.latency is None else f"{self.latency:.2f}",
            "real-time factor": "-" if self.real_time_factor is None else f"{self.real_time_factor:.2f}",
            "reason": self.reason,
        }
