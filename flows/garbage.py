"""Garbage collection in a thread of its own, for the process of a Prefect server on SQLite.

    collect_apart()

A cursor that a failed statement left behind (SQLite was busy, and the traceback made a cycle of it) is freed by the garbage
collector, which runs wherever somebody allocates: mostly in the event loop. Freeing it needs its connection's mutex, and
the connection's thread holds that while it waits for another writer, up to a minute. That writer waits for the event loop, which
waits for the mutex: the whole server stood still for 60 s, about once in a hundred runs, and every lease of every lane was
lost. In a thread of its own the collector may wait as long as it likes; a connection's mutex is taken with the GIL released.
(Seen with py-spy: ``gc_collect_main › cursor_dealloc › sqlite3_reset › pthread_mutex_lock``.)
"""

from __future__ import annotations

import gc
import itertools
import threading
import time

#: How often the collector looks, in seconds.
LOOK_SECONDS = 0.5
#: The youngest generation is collected once it has so many objects more.
_YOUNG = 5_000
#: The next is collected at every so many looks, and all of it at every so many.
_MIDDLE, _ALL = 20, 120


def collect_apart() -> None:
    """From now on a daemon thread collects garbage, and no other does. What there is now is taken to stay."""
    gc.collect()
    gc.freeze()
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    for look in itertools.count(1):
        time.sleep(LOOK_SECONDS)
        if look % _ALL == 0:
            gc.collect(2)
        elif look % _MIDDLE == 0:
            gc.collect(1)
        elif gc.get_count()[0] > _YOUNG:
            gc.collect(0)
