"""The process that keeps Prefect workers for `callsheet ui`, and ends them with its parent, runs and all.

    python -m flows.worker_process WORK_POOL

Standard input is a pipe that the parent holds. When it closes, however the parent ends, the worker and the runs are told to end,
and what is left of them after a while is killed: a worker by itself leaves runs behind when it is killed.
A worker that ends without having been told to is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

#: How long runs may take to end in order, in seconds; then they are killed. Giving back a rented host may take a minute and more.
GRACE_SECONDS = 120.0
#: Runs that the worker itself did not end by then are told to.
TELL_SECONDS = 3.0
#: A worker that ends by itself is started again after so many seconds.
AGAIN_SECONDS = 3.0
#: Workers: name, queue, and how many runs each has at once. Sweeps and shards have their own, or they would wait behind the batches.
WORKERS = (("callsheet-ui", "default", 4), ("callsheet-ui-apart", "apart", 4))


def main() -> None:
    """Keeps the workers until standard input ends or SIGTERM comes."""
    (pool,) = sys.argv[1:]
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    threading.Thread(target=_wait_for_parent, args=(told,), daemon=True).start()
    keepers = [threading.Thread(target=_keep, args=(_command(pool, *one), told)) for one in WORKERS]
    for keeper in keepers:
        keeper.start()
    print(json.dumps({"url": os.environ.get("PREFECT_API_URL", "")}), flush=True)
    for keeper in keepers:
        keeper.join()


def _command(pool: str, name: str, queue: str, limit: int) -> list[str]:
    return [
        sys.executable, "-m", "prefect", "worker", "start",
        "--pool", pool, "--work-queue", queue, "--type", "process", "--name", name, "--limit", str(limit),
    ]  # fmt: skip


def _keep(command: list[str], told: threading.Event) -> None:
    """Starts the worker, and starts it again, until it is ``told`` to end."""
    while not told.is_set():
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        while worker.poll() is None and not told.wait(0.2):
            pass
        if told.is_set():
            _end(worker)
        else:
            told.wait(AGAIN_SECONDS)


def _wait_for_parent(told: threading.Event) -> None:
    sys.stdin.read()
    told.set()


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Tells the worker to end, then its runs, and kills what is left."""
    seen = set(_descendants(worker.pid))
    worker.terminate()
    began = time.monotonic()
    told = False
    while alive := {pid for pid in seen if _is_alive(pid)} | (
        {worker.pid} if worker.poll() is None else set()
    ):
        for pid in alive:
            seen |= set(_descendants(pid))
        waited = time.monotonic() - began
        if waited > GRACE_SECONDS:
            break
        if waited > TELL_SECONDS and not told:
            told = True
            _signal(alive, signal.SIGTERM)
        time.sleep(0.2)
    _signal({*seen, worker.pid}, signal.SIGKILL)
    worker.wait()


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        if _is_alive(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and state of every process, by its id."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,stat="],  # noqa: S607  where it is differs between systems
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    rows = (line.split() for line in listed.splitlines())
    return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}


def _descendants(of: int) -> list[int]:
    processes = _processes()
    found = [of]
    for pid in found:
        found += [child for child, (parent, _) in processes.items() if parent == pid]
    return found[1:]


def _is_alive(pid: int) -> bool:
    """Whether it runs; one that ended and was not waited for does not."""
    _, state = _processes().get(pid, (0, "Z"))
    return not state.startswith("Z")


if __name__ == "__main__":
    main()
