"""
How the interpreter of a service's process is set.
"""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.0005
"""
Seconds that a thread waits for the interpreter while another one is busy: those that
read a database, or feed an engine, ask for it again and again.
"""


COLLECT_AFTER = 20_000
"""
New objects after which unreachable ones are looked for. What passes through a service is
let go of without: only what refers to itself waits for it.
"""


def tune_interpreter() -> None:
    """
    Set the process for long work, once its services have started.
    """
    # What there is now stays: looking through it takes longer than a turn may.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_INTERVAL)
