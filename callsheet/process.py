"""The parent's side of a server that is started for a run (`callsheet.serving` is the child's).

    async with served_by("gpu_service", "--draft", "--with-parent") as url:
        ...                                     # http://127.0.0.1:43211; gone when the block ends

The child is in a session of its own, so a Ctrl-C in the terminal reaches the run alone, which then
stops its servers in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from callsheet.errors import HostFault
from callsheet.timing import time_scale

#: A first start makes a database; that took 5 to 13 s on two cores (facts: prefect.md).
START_SECONDS = 120.0
STOP_SECONDS = 5.0


@asynccontextmanager
async def served_by(
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    patience: float = START_SECONDS,
    grace: float = STOP_SECONDS,
    log: Path | None = None,
) -> AsyncIterator[str]:
    """Runs ``python -m module`` and gives its address once it listens.

    ``patience`` is in seconds and is stretched by CALLSHEET_TIME_SCALE, never shrunk: imports and a new database
    take as long in a test as in a run. ``grace`` is how many seconds it may take to end before it is killed. ``log`` is the
    file that it writes what it says into, from its beginning; one that nobody reads where None.

    Raises:
        HostFault: it ended or did not listen in time; the message has the last lines it wrote.
    """
    patience *= max(1.0, time_scale())
    with tempfile.TemporaryFile() if log is None else log.open("w+b") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            try:
                line = await asyncio.wait_for(process.stdout.readline(), patience)
                yield_url = str(json.loads(line)["url"])
            except (TimeoutError, ValueError, KeyError) as fault:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-5:]
                late = isinstance(fault, TimeoutError)
                found = f"did not listen within {patience:g} s" if late else "ended before it listened"
                said = " | ".join(last) or "it said nothing"
                raise HostFault(f"{module} did not start, it {found}: {said}") from None
            yield yield_url
        finally:
            await _stop(process, grace)


async def _stop(process: asyncio.subprocess.Process, grace: float) -> None:
    """Closes its standard input, which ends it; kills it where that does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), grace)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
