"""
The errors that tbvast raises, as classes with data.
"""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 120
"""
The maximum number of characters that an error message quotes of a refused value.
"""


def shown(value: object) -> str:
    """
    Format a value for an error message: quoted, escaped and bounded in length.
    """
    length = len(value) if isinstance(value, str | bytes) else 0
    try:
        text = ascii(value[:SHOWN] if isinstance(value, str | bytes) else value)
    except (RecursionError, ValueError):  # nested too deeply, or too long a number
        text = f"a value of the type {type(value).__name__}"
    if length <= SHOWN and len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({max(length, len(text))} characters)"


class TbvastError(Exception):
    """
    The base of all errors of tbvast. Their C{str} is one line.
    """


@dataclass(eq=False, repr=False)
class Invalid(TbvastError):
    """
    Invalid input.

    @ivar field: The place of the input: the path of a key, a property, an option.
    @ivar value: The value found there.
    @ivar expected: The values accepted there, in words that follow "is not".
    """

    field: str
    value: object
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.value)} is not {self.expected}"


class ObservableInvalid(Invalid):
    """
    A value that is malformed for its kind of observable, e.g. an IP address.
    """


class PatternInvalid(Invalid):
    """
    Text that is not a STIX 2.1 pattern.

    @ivar position: The offset, in characters, of the first error.
    """

    def __init__(self, pattern: str, position: int, expected: str) -> None:
        super().__init__("pattern", pattern, expected)
        self.position = position

    def __str__(self) -> str:
        return (
            f"pattern: {shown(self.value)} is not a STIX pattern: "
            f"at character {self.position + 1}, {self.expected} was expected"
        )


@dataclass(eq=False, repr=False)
class PatternUnmatchable(TbvastError):
    """
    A valid pattern that no single event can satisfy, or that tbvast cannot match.

    @ivar reason: The reason, a short phrase that is the same for all such patterns.
    """

    reason: str


class DocumentInvalid(Invalid):
    """
    A document that is not a valid indicator or sighting.
    """


class ProtocolInvalid(Invalid):
    """
    A message that is not valid in the wire protocol.
    """


class LimitExceeded(ProtocolInvalid):
    """
    A message that exceeds a limit of the bus. The expectation names the limit.
    """


class DialectUnspoken(ProtocolInvalid):
    """
    A message in a dialect that the bus does not speak. The expectation gives the remedy.
    """


class SettingsInvalid(Invalid):
    """
    A configuration key or command line option with an unacceptable value.
    """


class StartupRefused(TbvastError):
    """
    A service cannot start. C{str} gives the reason and the remedy.
    """


class JournalFailed(TbvastError):
    """
    The journal could not write or read.
    """


class StoreFailed(TbvastError):
    """
    The bridge's store could not write or read.
    """


class FileLost(TbvastError):
    """
    An open file was removed, replaced, truncated or damaged, so that it cannot be written
    any more. C{str} tells what happened to it, and where its contents are.
    """


@dataclass(eq=False, repr=False)
class BusUnreachable(TbvastError):
    """
    A bus did not answer on its manage endpoint.

    @ivar address: The manage endpoint, C{HOST:PORT}.
    @ivar seconds: The time limit for the answer.
    """

    address: str
    seconds: float

    def __str__(self) -> str:
        return f"no answer from the bus at {self.address} within {self.seconds:g} s"


@dataclass(eq=False, repr=False)
class BusRefused(TbvastError):
    """
    A bus refused a request.

    @ivar request: The request, a verb phrase that follows "refused to".
    @ivar answer: The reason in its answer.
    """

    request: str
    answer: str

    def __str__(self) -> str:
        return f"the bus refused to {self.request}: {self.answer}"


class EngineError(TbvastError):
    """
    The base of the errors of engine calls.
    """


class EngineMissing(EngineError):
    """
    No engine is installed. C{str} tells how to install one.
    """


@dataclass(eq=False, repr=False)
class EngineUnsupported(EngineError):
    """
    The engine or its version is not supported.

    @ivar found: The name and version of the engine.
    @ivar expected: The names and versions that are supported.
    """

    found: str
    expected: str

    def __str__(self) -> str:
        return f"the engine is {self.found}; {self.expected} is needed"


@dataclass(eq=False, repr=False)
class EngineUnreachable(EngineError):
    """
    No connection to the node: it is down, or not ready yet.

    @ivar endpoint: The node's endpoint, C{HOST:PORT}.
    @ivar reason: The reason of the failure.
    """

    endpoint: str
    reason: str

    def __str__(self) -> str:
        return f"the engine at {self.endpoint} cannot be reached: {self.reason}"


@dataclass(eq=False, repr=False)
class EngineCallFailed(EngineError):
    """
    The node did not carry out a call.

    @ivar call: The name of the call, e.g. C{"add"}.
    @ivar reason: The engine's message, bounded in length.
    """

    call: str
    reason: str

    def __str__(self) -> str:
        return f"engine call {self.call} failed: {self.reason}"


class EngineTimeout(EngineCallFailed):
    """
    The node exceeded the time limit of a call, which was ended.

    @ivar seconds: The time limit.
    """

    def __init__(self, call: str, seconds: float) -> None:
        super().__init__(call, f"not finished after {seconds:g} s")
        self.seconds = seconds


@dataclass(eq=False, repr=False)
class EngineTablesChanged(EngineError):
    """
    Somebody else has changed or removed the tables of the engine, so that matches are missing
    or false until they are filled again.

    @ivar reason: The change that was noticed.
    """

    reason: str

    def __str__(self) -> str:
        return f"somebody else has changed the engine's tables: {self.reason}"


class EngineInterrupted(EngineError):
    """
    The call was ended by L{tbvast.interfaces.IEngine.interrupt}.
    """


@dataclass(eq=False, repr=False)
class CommandFailed(TbvastError):
    """
    A sink or transform command failed on an event.

    @ivar program: The program, as the configuration names it.
    @ivar reason: The reason; it contains nothing of the event.
    @ivar stderr: The end of the command's standard error.
    """

    program: str
    reason: str
    stderr: str = ""

    def __str__(self) -> str:
        lines = self.stderr.strip().splitlines()
        end = f" (its last line: {shown(lines[-1])})" if lines else ""
        return f"command {self.program}: {self.reason}{end}"


class CommandRefused(CommandFailed):
    """
    The command cannot be given this event. A retry would fail as well.
    """
