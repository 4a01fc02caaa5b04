"""
The two clocks of a process: elapsed time, and the calendar.

An administrator, or NTP, may set the calendar at any moment, forward or back. Delays,
timeouts and durations therefore use the reactor's clock, which only moves forward. Only the
dates of documents and journals use the calendar.
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


def awake() -> float:
    """
    The seconds since the machine's start, including its sleep.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """
    The id of the machine's current boot; C{""} if the system does not provide one.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def use_monotonic_time(reactor: Any) -> None:
    """
    Make a reactor measure time by the machine's monotonic clock; its default is the
    calendar. A delayed call then fires after its delay, even if somebody sets the calendar.

    @param reactor: A reactor without delayed calls, for those were timed by the old clock.
    """
    reactor.seconds = time.monotonic
