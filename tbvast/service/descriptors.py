"""
The number of descriptors that a process may have.
"""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> int:
    """
    Raise the limit of this process as far as the system allows it.

    @return: The most descriptors that it may have now.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
