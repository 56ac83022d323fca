"""A cursor that became garbage while its connection waits for a lock must not hold up the thread that everybody waits for."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

#: A connection waits in a thread of its own for a lock that another holds, as aiosqlite's do. A cursor of it, whose
#: statement found the database locked before, is garbage; and the main thread, which is to give the lock back after half
#: a second, allocates meanwhile.
PLAY = """
import gc, sqlite3, sys, tempfile, threading, time
from flows.garbage import collect_apart

path = tempfile.mkdtemp() + "/play.db"
holder, waiter = (
    sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=seconds) for seconds in (1, 6)
)
holder.execute("PRAGMA journal_mode = WAL")
holder.execute("CREATE TABLE t (n)")
holder.execute("INSERT INTO t VALUES (1), (2), (3)")
if sys.argv[1] == "apart":
    collect_apart()

class Left:
    pass

def leave():
    left = Left()
    left.cursor, left.itself = waiter.cursor(), left
    waiter.execute("PRAGMA busy_timeout = 10")
    try:
        left.cursor.execute("INSERT INTO t VALUES (5)")
    except sqlite3.OperationalError as error:
        assert "locked" in str(error)
    waiter.execute("PRAGMA busy_timeout = 6000")

gc.collect()
holder.execute("BEGIN IMMEDIATE")
leave()
thread = threading.Thread(target=lambda: waiter.execute("INSERT INTO t VALUES (4)"))
thread.start()
time.sleep(0.2)
began, kept = time.monotonic(), []
while time.monotonic() < began + 0.5:
    kept.append([[] for _ in range(100)])
holder.execute("COMMIT")
print(time.monotonic() - began)
thread.join()
"""


@pytest.mark.parametrize(("where", "is_held_up"), [("anywhere", True), ("apart", False)])
def test_the_thread_that_is_to_give_a_lock_back_is_not_held_up(where: str, is_held_up: bool) -> None:
    played = subprocess.run(
        [sys.executable, "-c", PLAY, where], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert played.stdout, played.stderr
    assert (float(played.stdout) > 4) is is_held_up


def test_garbage_goes_all_the_same() -> None:
    code = """
import gc, time, weakref
from flows.garbage import collect_apart

collect_apart()

class Thing:
    pass

def leave():
    things = [Thing() for _ in range(6000)]
    for thing in things:
        thing.itself = thing
    return weakref.ref(things[0])

left = leave()
give_up = time.monotonic() + 20
while left() is not None:
    assert time.monotonic() < give_up
    time.sleep(0.05)
assert not gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
