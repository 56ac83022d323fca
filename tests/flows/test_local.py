"""A run that a terminal starts, in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: SIGTERM in the middle of the flow's own code: a signal may come there as well as between two turns of the loop.
PROGRAM = """
import signal, sys
from pathlib import Path
from callsheet.parameters import ProduceParameters
from flows.local import Terminated, run

class Watcher:
    def changed(self, batch):
        signal.raise_signal(signal.SIGTERM)
    def told(self, text):
        pass

try:
    run(ProduceParameters(script=Path(sys.argv[1]), store=sys.argv[2]), watcher=Watcher(), announce=lambda ui: None)
except Terminated:
    print("told to end")
"""


@pytest.mark.slow
def test_sigterm_anywhere_ends_a_run_in_order(write_script: Callable[..., Path], tmp_path: Path) -> None:
    """Prefect, told so inside a flow, sends the signal again to the handler before: that one ended the process."""
    script = write_script({"shot_id": "a", "text": "One line is spoken.", "voice": "anna"})
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (told.returncode, told.stdout.splitlines()[-1:]) == (0, ["told to end"]), told.stderr[-2000:]
