"""
The two clocks of a process: time that passes, and the calendar.

An administrator, or NTP, may set the calendar at any moment, forward or back. Whatever
waits, times out or measures a duration therefore reads the reactor's clock, which only
ever moves on. What a document or a journal says of a date reads the calendar.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Calendar = Callable[[], float]
"""
Tells the date: seconds since the epoch, in UTC. It may jump, forward and back.
"""

calendar: Calendar = time.time
"""
The machine's own.
"""


def awake() -> float:
    """
    The seconds since the machine's start; those that it slept are counted.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """
    What tells one start of the machine from another; C{""} if the system does not say.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def use_monotonic_time(reactor: Any) -> None:
    """
    Have a reactor measure time by the machine's monotonic clock; its own choice is the
    calendar. A delayed call then fires when its delay has passed, whatever is done to the
    calendar.

    @param reactor: One on which no call is waiting yet, for what waits was timed by the
        clock before.
    """
    reactor.seconds = time.monotonic
