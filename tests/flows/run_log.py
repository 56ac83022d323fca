"""The log of a flow run as the Prefect server has it, which is what a person reads in its UI."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx

#: The last line that Prefect writes of a flow run, and how long it may take to come.
_END, _SECONDS = "Finished in state", 60.0


@dataclass(frozen=True)
class Logged:
    """A line: what it says, how serious it is (`logging.INFO`, …), and whether a task run said it."""

    text: str
    level: int
    of_task: bool


async def lines_now(api: str, flow_run: str) -> list[Logged]:
    """What the server has of it so far, in order."""
    wanted: dict[str, Any] = {
        "logs": {"flow_run_id": {"any_": [flow_run]}},
        "sort": "TIMESTAMP_ASC",
        "limit": 200,
    }
    async with httpx.AsyncClient() as client:
        answer = (await client.post(f"{api}/api/logs/filter", json=wanted)).raise_for_status()
    return [Logged(one["message"], one["level"], one["task_run_id"] is not None) for one in answer.json()]


async def log_of(api: str, state: Any) -> list[Logged]:
    """All lines of a flow run that ended, as soon as the last is there."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        lines = await lines_now(api, str(state.state_details.flow_run_id))
        if any(line.text.startswith(_END) and not line.of_task for line in lines):
            return lines
        await asyncio.sleep(0.2)
    raise TimeoutError("the end of the run is not in its log")


def ours(lines: list[Logged]) -> list[str]:
    """What Callsheet said, in order."""
    return [line.text for line in lines if line.text.startswith("script: ")]
