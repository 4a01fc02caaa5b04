"""
Tunes the interpreter of a service's process.
"""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.0005
"""
Seconds that a thread waits for the interpreter while another one is busy. Threads that read
a database, or feed an engine, request it often.
"""


COLLECT_AFTER = 20_000
"""
New objects before a garbage collection. Most objects of a service are freed by reference
counting; only cycles wait for the collection.
"""


def tune_interpreter() -> None:
    """
    Tune the interpreter for a long run. Called once, when the services have started.
    """
    # The current objects stay: scanning them would block the reactor for too long.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_INTERVAL)
