"""
Summaries of error messages that an engine writes.
"""

from __future__ import annotations

MAX_CHARACTERS = 300
"""
The most characters of a message that an error repeats.
"""


def error_summary(text: str) -> str:
    """
    Summarise the standard error of a command in one bounded line: from its last error on, else
    from its first warning on, else as a whole.
    """
    start = max(text.rfind("error: "), 0) or max(text.find("warning: "), 0)
    line = " ".join(text[start:].split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}…"
