"""
What can go wrong, as classes with data.
"""

from __future__ import annotations

from typing import Any

SHOWN = 120
"""
The most characters of a refused value that an error message repeats.
"""


def shown(value: Any) -> str:
    """
    A value as an error message may show it: quoted, escaped, bounded.
    """
    length = len(value) if isinstance(value, str | bytes) else 0
    try:
        text = ascii(value[:SHOWN] if length else value)
    except (RecursionError, ValueError):  # nested too deep, or a number too long to be written
        text = f"a value of the type {type(value).__name__}"
    if length <= SHOWN and len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({max(length, len(text))} characters)"


class TbvastError(Exception):
    """
    The base of everything tbvast raises on purpose; C{str} of it is one line.
    """


class Invalid(TbvastError):
    """
    Input that is not what was expected.

    @ivar field: Where: a key's path, a property, an option.
    @ivar value: What was found there.
    @ivar expected: What would have been right, in words.
    """

    def __init__(self, field: str, value: Any, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.value)} is not {self.expected}"


class ObservableInvalid(Invalid):
    """
    A value that is none of its kind: an address that is no address, say.
    """


class PatternInvalid(Invalid):
    """
    Text that is not a STIX 2.1 pattern.

    @ivar position: The offset, in characters, at which it stopped making sense.
    """

    def __init__(self, pattern: str, position: int, expected: str) -> None:
        super().__init__("pattern", pattern, expected)
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.value, self.position, self.expected))

    def __str__(self) -> str:
        return (
            f"pattern: {shown(self.value)} is not a STIX pattern: "
            f"at character {self.position + 1}, {self.expected} was expected"
        )


class PatternUnmatchable(TbvastError):
    """
    A valid pattern that no single event can decide, or that tbvast cannot match.

    @ivar reason: Why, as a short phrase that can be counted and listed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IndicatorInvalid(Invalid):
    """
    A document that is not an indicator which can be accepted.
    """


class SightingInvalid(Invalid):
    """
    A document that is not a sighting which can be accepted.
    """


class ProtocolInvalid(Invalid):
    """
    A message that the wire protocol does not know.
    """


class SettingsInvalid(Invalid):
    """
    A configuration key or command line option that cannot be used.
    """


class StartupRefused(TbvastError):
    """
    A service cannot start; C{str} of it says why and what to do, in one line.
    """


class JournalFailed(TbvastError):
    """
    The journal could not keep, or could not read, what it was asked to.
    """


class StoreFailed(TbvastError):
    """
    The bridge's store could not keep, or could not read, what it was asked to.
    """


class FileLost(TbvastError):
    """
    A file that is in use was removed, replaced, cut or damaged: nothing more can be kept in
    it. C{str} of it says what has become of it, and where its contents are, in one line.
    """


class BusUnreachable(TbvastError):
    """
    A bus did not answer on its manage endpoint.

    @ivar address: The manage endpoint, C{HOST:PORT}.
    @ivar seconds: How long the answer was waited for.
    """

    def __init__(self, address: str, seconds: float) -> None:
        super().__init__(address, seconds)
        self.address = address
        self.seconds = seconds

    def __str__(self) -> str:
        return f"no answer from the bus at {self.address} within {self.seconds:g} s"


class BusRefused(TbvastError):
    """
    A bus answered, and the answer was no.

    @ivar request: What was asked of it.
    @ivar answer: What it said.
    """

    def __init__(self, request: str, answer: str) -> None:
        super().__init__(request, answer)
        self.request = request
        self.answer = answer

    def __str__(self) -> str:
        return f"the bus refused to {self.request}: {self.answer}"


class EngineError(TbvastError):
    """
    The base of what an engine call raises.
    """


class EngineMissing(EngineError):
    """
    No engine is installed; C{str} of it says how to install one.
    """


class EngineUnsupported(EngineError):
    """
    The engine is not one that tbvast can drive.

    @ivar found: What it calls itself, with its version.
    @ivar expected: What it would have to be.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return f"the engine is {self.found}; {self.expected} is needed"


class EngineUnreachable(EngineError):
    """
    The node could not be asked: it is down, or not there yet.

    @ivar endpoint: The node's endpoint, C{HOST:PORT}.
    @ivar reason: What the attempt ended with.
    """

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"the engine at {self.endpoint} cannot be reached: {self.reason}"


class EngineCallFailed(EngineError):
    """
    The node was asked and did not do it.

    @ivar call: Which call, e.g. C{"add"}.
    @ivar reason: What the engine said, bounded in length.
    """

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(call, reason)
        self.call = call
        self.reason = reason

    def __str__(self) -> str:
        return f"engine call {self.call} failed: {self.reason}"


class EngineTimeout(EngineCallFailed):
    """
    The node did not finish in time; the call was ended.

    @ivar seconds: The time it had.
    """

    def __init__(self, call: str, seconds: float) -> None:
        super().__init__(call, f"not finished after {seconds:g} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.call, self.seconds))


class EngineInterrupted(EngineError):
    """
    The call was ended because L{tbvast.interfaces.IEngine.interrupt} was called.
    """


class CommandFailed(TbvastError):
    """
    A command that was to take or change an event did not do it.

    @ivar program: The program, as the configuration names it.
    @ivar reason: What went wrong; holds nothing of the event.
    @ivar stderr: The end of what the command said on standard error.
    """

    def __init__(self, program: str, reason: str, stderr: str = "") -> None:
        super().__init__(program, reason, stderr)
        self.program = program
        self.reason = reason
        self.stderr = stderr

    def __str__(self) -> str:
        said = self.stderr.strip().splitlines()
        end = f" (its last line: {shown(said[-1])})" if said else ""
        return f"command {self.program}: {self.reason}{end}"


class CommandRefused(CommandFailed):
    """
    This event cannot be given to the command; trying it again would not help.
    """
