"""
How the interpreter of a service's process is set.
"""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.0005
"""
Seconds that a thread waits for the interpreter while another one is busy: those that
write to a database ask for it several times in each transaction.
"""


def settle() -> None:
    """
    Set the process for long work, once its services have started.
    """
    # What there is now stays: looking through it takes longer than a turn may.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)
