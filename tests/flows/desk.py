"""``callsheet ui`` for tests: started in a folder, asked for its addresses, watched to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.processes import is_alive

BIN = Path(sys.executable).parent


class Desk:
    """``callsheet ui`` in a folder, once it has told its addresses."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.folder = folder
        self.process = subprocess.Popen(
            [BIN / "callsheet", "ui", *options],
            cwd=folder,
            env={**kept, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=(folder / "errors.txt").open("w"),
            text=True,
        )
        self.ui, self.store = self._address("Prefect UI:"), self._address("Store:")
        self.children = self._descendants()

    def _address(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).split()[0]
        raise AssertionError((self.folder / "errors.txt").read_text("utf-8"))

    def _descendants(self) -> list[int]:
        command = ["ps", "-eo", "pid=,ppid="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]

    def watch(self) -> None:
        """Notes which processes it has started by now."""
        self.children = sorted({*self.children, *self._descendants()})

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(f"{self.ui}/api/{path}", json=body, timeout=30).raise_for_status().json()

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.ui}/api/deployments/name/{name}").raise_for_status().json()
        return found

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post(
            "flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="START_TIME_ASC"
        )
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.watch()
            self.process.send_signal(number)
        return self.process.wait(60)

    def left(self) -> list[int]:
        """Those of its processes that are there half a minute later."""
        give_up = time.monotonic() + 40
        while (alive := [pid for pid in self.children if is_alive(pid)]) and time.monotonic() < give_up:
            time.sleep(0.1)
        return alive


def until(met: Callable[[], Any], seconds: float = 120) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < give_up
        time.sleep(0.3)
    return found
