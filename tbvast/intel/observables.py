"""
Observables: typed, normalised values that can be seen in an event.
"""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.StrEnum):
    """
    What an observable is; the value is its name on logs and in stores.
    """

    IP = "ip"
    NETWORK = "network"
    DOMAIN = "domain"
    URL = "url"
    EMAIL = "email"
    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"


class Observable(msgspec.Struct, frozen=True, order=True):
    """
    One value that can be seen in an event, in its normal form.

    @ivar kind: What the value is.
    @ivar value: The normal form: L{tbvast.intel.observables.normalise} made it.
    """

    kind: Kind
    value: str
