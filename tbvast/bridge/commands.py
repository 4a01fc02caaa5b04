"""
Commands that change the context of a sighting, or take it instead of the bus.

A command's words are fixed when the configuration is read. What an event
brings is put inside one word each, never through a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IReactorFDSet,
    IReactorProcess,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.errors import CommandFailed, CommandRefused, SettingsInvalid
from tbvast.interfaces import IContextTransform, ISink
from tbvast.service.child_process import BackOff, Child, Children, Exit, Finished, OneShots, Output
from tbvast.stix.sightings import MatchType

LONGEST_ANSWER = 16 * 1024 * 1024
"""
The most bytes of a changed context.
"""

BROKEN = 3
"""
After so many failures in a row, events do not wait for a command to be tried again.
"""

BATCH = 64 * 1024
"""
About how many bytes are given to a running sink at a time: what a pipe holds.
"""

_PLACEHOLDER = re.compile(r"%ioc|%matchtype")
_INTERPRETER = re.compile(r"(ba|da|z|k|a|fi|c|tc)?sh|(python|perl|ruby|node|php)[0-9.]*")
_CODE_OPTION = re.compile(r"-[A-Za-z]*[ce]")


class Command(msgspec.Struct, frozen=True):
    """
    A program and its arguments, which may hold C{%ioc} and C{%matchtype}.

    @ivar program: The program, as it was written.
    @ivar executable: Its absolute path.
    @ivar arguments: What follows it, placeholders included.
    """

    program: str
    executable: str
    arguments: tuple[str, ...]

    @property
    def per_event(self) -> bool:
        """
        Whether the arguments differ from event to event.
        """
        return any(map(_PLACEHOLDER.search, self.arguments))

    def argv(self, value: str, match_type: MatchType) -> list[bytes]:
        """
        The words for one event.

        A value that would be read as an option is refused: one that starts with
        a dash where an argument starts with its placeholder, unless C{--} comes
        before. C{--ioc=%ioc} takes any value.

        @raise CommandRefused: If the value cannot be an argument.
        """
        values = {"%ioc": value, "%matchtype": match_type.value}
        words = [os.fsencode(self.program)]
        operands = False
        for argument in self.arguments:
            word = _PLACEHOLDER.sub(lambda found: values[found.group()], argument)
            if "\0" in word:
                raise CommandRefused(self.program, "a value with a NUL character")
            if word.startswith("-") and not argument.startswith("-") and not operands:
                raise CommandRefused(self.program, "a value that would be read as an option")
            operands = operands or argument == "--"
            try:
                words.append(os.fsencode(word) if word == argument else word.encode())
            except UnicodeEncodeError:
                raise CommandRefused(self.program, "a value that is no Unicode text") from None
        return words


def parse_command(text: str, field: str = "command") -> Command:
    """
    Read a command as a configuration file has it: words, quoted as in a shell.

    @param field: The name of the setting, for the error message.
    @raise SettingsInvalid: If it cannot be split into words, if there is no
        such program, or if a placeholder stands where its value would be code.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise SettingsInvalid(field, text, "a command with balanced quotes") from None
    if not words:
        raise SettingsInvalid(field, text, "a command: a program and its arguments")
    if any("\0" in word for word in words):
        raise SettingsInvalid(field, text, "a command without NUL characters")
    program, *arguments = words
    if _PLACEHOLDER.search(program):
        raise SettingsInvalid(field, program, "a program: %ioc and %matchtype go into arguments")
    executable = shutil.which(program)
    if executable is None:
        raise SettingsInvalid(field, program, "a program that can be found and run")
    for position, word in enumerate(words[2:], 2):
        if _PLACEHOLDER.search(word) and _is_code(words[:position]):
            raise SettingsInvalid(
                field,
                word,
                "safe: the value would be read as code; give it as an argument of its own,"
                " e.g. sh -c 'tool \"$1\"' sh %ioc",
            )
    return Command(program, os.path.abspath(executable), tuple(arguments))


def _is_code(before: Sequence[str]) -> bool:
    """
    Whether the word that follows C{before} is a program text for an interpreter.
    """
    return bool(_CODE_OPTION.fullmatch(before[-1])) and any(
        _INTERPRETER.fullmatch(os.path.basename(word)) for word in before[:-1]
    )


def _encode(program: str, event: dict[str, Any]) -> bytes:
    """
    @return: The event as one line of JSON.
    @raise CommandRefused: If it is none.
    """
    try:
        return msgspec.json.encode(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise CommandRefused(program, "an event that has no JSON form") from None


def _decode(program: str, answer: bytes | bytearray, stderr: str) -> dict[str, Any]:
    """
    @raise CommandFailed: If it is not one JSON object.
    """
    try:
        context: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise CommandFailed(program, "its answer is not a JSON object", stderr) from None
    return context


class _Complaints:
    """
    Failures on their way to the log: the first at once, then one a minute, with
    the number of those in between.
    """

    EVERY = 60.0

    def __init__(self, log: Logger, clock: IReactorTime, consequence: str) -> None:
        """
        @param consequence: What a failure means for the event.
        """
        self._log = log
        self._clock = clock
        self._consequence = consequence
        self._unsaid = 0
        self._next: float | None = None

    def add(self, error: CommandFailed) -> None:
        """
        Log a failure, or count it.
        """
        self._unsaid += 1
        now = self._clock.seconds()
        if self._next is not None and now < self._next:
            return
        self._next = now + self.EVERY
        failures, self._unsaid = self._unsaid, 0
        self._log.warn(
            "Command {program} failed ({failures} new failures): {reason}; {consequence}.",
            program=error.program,
            failures=failures,
            reason=error.reason,
            consequence=self._consequence,
            stderr=error.stderr,
        )


class _Question:
    """
    An event whose changed context is waited for.
    """

    def __init__(self, event: dict[str, Any], argv: Sequence[bytes], line: bytes) -> None:
        self.event = event
        self.argv = argv
        self.line = line
        self.answer: Deferred[dict[str, Any]] = Deferred()


class _Talk:
    """
    What is known of one running command that is asked line by line.

    @ivar sent: The questions it has not answered, in order.
    @ivar answered: How many it has answered.
    @ivar whole: Whether its input was closed, so that everything it says is
        one answer.
    @ivar asked: When the first of C{sent} became the first; seconds.
    @ivar timer: Ends the wait for its answer.
    """

    child: Child

    def __init__(self) -> None:
        self.sent: deque[_Question] = deque()
        self.answered = 0
        self.whole = False
        self.asked = 0.0
        self.timer: IDelayedCall | None = None
        self.said = bytearray()
        self._searched = 0

    def next_line(self) -> bytes | None:
        """
        Take the next complete line out of what was said.
        """
        end = self.said.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self.said)
            return None
        line = bytes(self.said[:end])
        del self.said[: end + 1]
        self._searched = 0
        return line

    def unread(self, line: bytes) -> None:
        """
        Put the line back that was taken last.
        """
        self.said[:0] = line + b"\n"

    def disarm(self) -> None:
        """
        Wait no longer for an answer.
        """
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None


@implementer(IContextTransform)
class TransformContext(Service):
    """
    An L{IContextTransform} which asks a command.

    The command reads an event as one line of JSON on its standard input, and
    writes the changed context as JSON to its standard output.

    A command without placeholders is kept running, is given a line for each
    event, and has to answer with exactly one line each, in order. One whose
    first answer does not come as a line is found out: its input is closed, all
    it says is the answer, and from then on it is run once for each event. A
    command with placeholders is run once for each event from the start.

    An answer that is late, missing or no JSON object leaves the event as it is.
    The events behind it are asked again of a new process: what the old one
    would still say could not be told apart.
    """

    _log = Logger()

    def __init__(
        self,
        command: Command,
        reactor: IReactorProcess,
        clock: IReactorTime,
        timeout: float = 10.0,
        patience: float = 3.0,
        concurrency: int = 4,
        in_flight: int = 64,
        kill_after: float = 5.0,
    ) -> None:
        """
        @param timeout: Seconds that an answer may take.
        @param patience: Seconds to wait for the first line of a command that
            may answer only at the end of its input.
        @param concurrency: The most processes at a time, if each has one event.
        @param in_flight: The most events a running command is given ahead.
        @param kill_after: Seconds from SIGTERM to SIGKILL.
        """
        self._command = command
        self._clock = clock
        self._timeout = timeout
        self._patience = patience
        self._in_flight = in_flight
        self._complaints = _Complaints(self._log, clock, "events are reported unchanged")
        self._children = Children(reactor, clock, kill_after)
        self._executable = os.fsencode(command.executable)
        self._once = OneShots(
            self._children,
            clock,
            command.program,
            self._executable,
            timeout,
            concurrency,
            LONGEST_ANSWER,
        )
        self._backoff = BackOff(clock, self._feed)
        self._waiting: deque[_Question] = deque()
        self._talk: _Talk | None = None
        self._streams = False
        self._each = command.per_event
        self._stopped = False

    def startService(self) -> None:
        super().startService()
        self._stopped = False
        self._once.resume()

    def stopService(self) -> Deferred[None]:
        """
        Report what is waiting unchanged, and end the command.

        @return: Fires when no process is left.
        """
        super().stopService()
        self._stopped = True
        self._backoff.cancel()
        questions = list(self._waiting)
        self._waiting.clear()
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.disarm()
            questions = [*talk.sent, *questions]
        self._once.stop()
        stopped = self._children.stop()
        for question in questions:
            question.answer.callback(question.event)
        return stopped

    def transform(
        self, event: dict[str, Any], value: str, match_type: MatchType
    ) -> Deferred[dict[str, Any]]:
        if self._stopped or self._is_broken():
            return succeed(event)
        try:
            argv = self._command.argv(value, match_type)
            question = _Question(event, argv, _encode(self._command.program, event))
        except CommandRefused as e:
            self._complaints.add(e)
            return succeed(event)
        self._waiting.append(question)
        self._feed()
        return question.answer

    def _is_broken(self) -> bool:
        return self._backoff.waiting and self._backoff.failures >= BROKEN

    # Once for each event.

    def _ask_once(self, question: _Question) -> None:
        (
            self._once.run(question.argv, question.line)
            .addCallback(self._cb_finished)
            .addErrback(self._eb_failed, question)
            .chainDeferred(question.answer)
        )

    def _cb_finished(self, finished: Finished) -> dict[str, Any]:
        return _decode(self._command.program, finished.output, finished.stderr)

    def _eb_failed(self, failure: Failure, question: _Question) -> dict[str, Any]:
        failure.trap(CommandFailed)
        error: Any = failure.value
        self._complaints.add(error)
        return question.event

    # One running command.

    def _feed(self) -> None:
        """
        Give the command as many of the waiting events as it may have.
        """
        while self._each and self._waiting:
            self._ask_once(self._waiting.popleft())
        if not self._waiting or self._backoff.waiting:
            return
        talk = self._talk or self._start()
        if talk is None or talk.whole:
            return
        idle = not talk.sent
        allowed = self._in_flight if self._streams else 1
        while self._waiting and len(talk.sent) < allowed:
            question = self._waiting.popleft()
            talk.sent.append(question)
            talk.child.write(question.line)
        if idle:
            self._arm(talk)

    def _start(self) -> _Talk | None:
        talk = _Talk()
        try:
            talk.child = self._children.spawn(
                self._waiting[0].argv,
                self._executable,
                ended=partial(self._ended, talk),
                received=partial(self._received, talk),
            )
        except OSError as e:
            reason = f"cannot be started: {e.strerror or e}"
            self._blame(self._waiting.popleft(), CommandFailed(self._command.program, reason))
            return None
        self._talk = talk
        return talk

    def _arm(self, talk: _Talk) -> None:
        talk.disarm()
        if talk.sent:
            talk.asked = self._clock.seconds()
            limit = self._timeout if self._streams else min(self._patience, self._timeout)
            talk.timer = self._clock.callLater(limit, self._overdue, talk)

    def _overdue(self, talk: _Talk) -> None:
        if self._streams or talk.whole:
            self._break_off(talk, f"no answer within {self._timeout:g} s")
        else:
            self._take_whole(talk)

    def _take_whole(self, talk: _Talk) -> None:
        talk.disarm()
        talk.whole = True
        left = talk.asked + self._timeout - self._clock.seconds()
        talk.timer = self._clock.callLater(max(0.0, left), self._overdue, talk)
        talk.child.close_input()

    def _received(self, talk: _Talk, data: bytes) -> None:
        if talk is not self._talk:
            return
        talk.said += data
        while talk is self._talk and not talk.whole:
            line = talk.next_line()
            if line is None:
                break
            if line.strip():
                self._answered(talk, line)
        if talk is self._talk and len(talk.said) > LONGEST_ANSWER:
            self._break_off(talk, f"an answer of more than {LONGEST_ANSWER} bytes")
        self._feed()

    def _answered(self, talk: _Talk, line: bytes) -> None:
        if not talk.sent:
            self._break_off(talk, "a line more than there were events")
            return
        try:
            context = _decode(self._command.program, line, talk.child.stderr)
        except CommandFailed as e:
            if self._streams:
                self._break_off(talk, e.reason)
            else:
                talk.unread(line)
                self._take_whole(talk)
            return
        self._streams = True
        self._backoff.succeeded()
        talk.answered += 1
        question = talk.sent.popleft()
        self._arm(talk)
        question.answer.callback(context)

    def _break_off(self, talk: _Talk, reason: str) -> None:
        """
        End a command that is out of step; the event it should have answered
        stays as it is.
        """
        self._talk = None
        talk.disarm()
        error = CommandFailed(self._command.program, reason, talk.child.stderr)
        blamed = talk.sent.popleft() if talk.sent else None
        self._waiting.extendleft(reversed(talk.sent))
        talk.child.end()
        self._blame(blamed, error)

    def _ended(self, talk: _Talk, exit_: Exit) -> None:
        if talk is not self._talk:
            return
        self._talk = None
        talk.disarm()
        reason = "ended without an answer" if exit_.clean else str(exit_)
        error = CommandFailed(self._command.program, reason, exit_.stderr)
        context = None
        if exit_.clean and talk.sent and talk.said.strip():
            try:
                context = _decode(self._command.program, talk.said, exit_.stderr)
            except CommandFailed as e:
                error = e
        done = talk.sent.popleft() if context is not None else None
        answered = talk.answered + (done is not None)
        blamed = None
        if talk.sent and not (exit_.clean and answered):
            blamed = talk.sent.popleft()
        self._waiting.extendleft(reversed(talk.sent))
        if exit_.clean and answered == 1:
            self._each = True
            self._log.info(
                "Command {program} does not answer line by line: it is run once for each event.",
                program=self._command.program,
            )
        if done is not None and context is not None:
            self._backoff.succeeded()
            done.answer.callback(context)
        if blamed is not None or not exit_.clean:
            self._blame(blamed, error)
        self._feed()

    def _blame(self, question: _Question | None, error: CommandFailed) -> None:
        """
        Report the event unchanged, and try the command again later.
        """
        self._complaints.add(error)
        self._backoff.failed()
        questions = [] if question is None else [question]
        if self._is_broken():
            questions += self._waiting
            self._waiting.clear()
        for unchanged in questions:
            unchanged.answer.callback(unchanged.event)


class _Lines:
    """
    Lines on their way into a pipe, a batch at a time.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, Deferred[None]]] = deque()
        self._writing: list[tuple[bytes, Deferred[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    def add(self, line: bytes) -> Deferred[None]:
        """
        @return: Fires when the line is in the pipe.
        """
        taken: Deferred[None] = Deferred()
        self._waiting.append((line, taken))
        return taken

    def next_batch(self) -> bytes:
        """
        @return: What is to be written now; nothing as long as the batch before
            is not in the pipe.
        """
        if self._writing:
            return b""
        size = 0
        while self._waiting and size < BATCH:
            line = self._waiting.popleft()
            self._writing.append(line)
            size += len(line[0])
        return b"".join(data for data, _ in self._writing)

    def taken(self) -> None:
        """
        The batch is in the pipe.
        """
        batch, self._writing = self._writing, []
        for _, taken in batch:
            taken.callback(None)

    def put_back(self) -> None:
        """
        The batch did not get into the pipe, or not all of it.
        """
        self._waiting.extendleft(reversed(self._writing))
        self._writing = []

    def fail(self, program: str, reason: str) -> None:
        """
        Nothing of all this will be taken.
        """
        self.put_back()
        lines, self._waiting = self._waiting, deque()
        for _, taken in lines:
            taken.errback(CommandFailed(program, reason))


class _Stream:
    """
    One running command that is given a line for each event.

    A line counts as taken when it is in the command's pipe. What is in the pipe
    when the command dies is lost; so a new process is given nothing until it
    has run for a moment.
    """

    SETTLE = 0.5
    STOPPED = "stopped before it took the event"

    _log = Logger()

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        command: Command,
        argv: Sequence[bytes],
        timeout: float,
    ) -> None:
        """
        @param timeout: Seconds after which it is logged that the command takes
            nothing; it is waited for all the same.
        """
        self._children = children
        self._clock = clock
        self._command = command
        self._argv = argv
        self._timeout = timeout
        self._complaints = _Complaints(self._log, clock, "events wait until it runs again")
        self._backoff = BackOff(clock, self._feed)
        self._lines = _Lines()
        self._child: Child | None = None
        self._started = 0.0
        self._timer: IDelayedCall | None = None
        self._settled = False
        self._stopped = False

    def send(self, data: bytes) -> Deferred[None]:
        """
        @return: Fires when the line is in the pipe; fails with L{CommandFailed}
            if the sink is stopped before.
        """
        if self._stopped:
            return fail(CommandFailed(self._command.program, self.STOPPED))
        taken = self._lines.add(data)
        self._feed()
        return taken

    def stop(self) -> None:
        """
        Fail what waits, even if the last of it may still reach the command. The
        process is the business of its L{Children}.
        """
        self._stopped = True
        self._backoff.cancel()
        self._disarm()
        self._child = None
        self._lines.fail(self._command.program, self.STOPPED)

    def resume(self) -> None:
        """
        Take lines again after L{stop}.
        """
        self._stopped = False

    def _feed(self) -> None:
        if not self._lines or self._backoff.waiting or self._stopped:
            return
        if self._child is None:
            self._start()
        elif self._settled:
            batch = self._lines.next_batch()
            if batch:
                self._timer = self._clock.callLater(self._timeout, self._stalled)
                self._child.write(batch)

    def _start(self) -> None:
        try:
            child = self._children.spawn(
                self._argv,
                os.fsencode(self._command.executable),
                ended=lambda exit_: self._ended(child, exit_),
                drained=lambda: self._drained(child),
                deaf=lambda: self._deafened(child),
            )
        except OSError as e:
            reason = f"cannot be started: {e.strerror or e}"
            self._complaints.add(CommandFailed(self._command.program, reason))
            self._backoff.failed()
            return
        self._child = child
        self._started = self._clock.seconds()
        self._settled = False
        self._timer = self._clock.callLater(self.SETTLE, self._settle)

    def _settle(self) -> None:
        self._timer = None
        self._settled = True
        self._feed()

    def _stalled(self) -> None:
        self._timer = None
        self._log.warn(
            "Command {program} has taken nothing for {seconds:g} s; {waiting} events wait.",
            program=self._command.program,
            seconds=self._timeout,
            waiting=len(self._lines),
        )

    def _drained(self, child: Child) -> None:
        if child is not self._child:
            return
        self._disarm()
        self._lines.taken()
        self._feed()

    def _deafened(self, child: Child) -> None:
        if child is self._child:
            child.end(self._timeout)

    def _ended(self, child: Child, exit_: Exit) -> None:
        if child is not self._child:
            return
        self._child = None
        self._disarm()
        self._lines.put_back()
        if self._clock.seconds() - self._started > BackOff.MOST:
            self._backoff.succeeded()
        self._complaints.add(CommandFailed(self._command.program, str(exit_), exit_.stderr))
        self._backoff.failed()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@implementer(ISink)
class CommandSink(Service):
    """
    An L{ISink} which is a command.

    It is run once for each event, with the context as JSON on its standard
    input, and has taken it when it ends with exit status 0. As a stream, one
    command is kept running and is given a line for each event. Its standard
    output is not read for anything.
    """

    def __init__(
        self,
        command: Command,
        reactor: IReactorProcess,
        clock: IReactorTime,
        stream: bool = False,
        timeout: float = 10.0,
        concurrency: int = 4,
        kill_after: float = 5.0,
    ) -> None:
        """
        @param stream: Whether one running command takes all events.
        @param timeout: Seconds that one run may take; for a stream, see
            L{_Stream}.
        @param concurrency: The most processes at a time.
        @param kill_after: Seconds from SIGTERM to SIGKILL; a stream has as long
            to end by itself before that.
        @raise SettingsInvalid: If a stream is asked for, and the command has
            placeholders.
        """
        if stream and command.per_event:
            raise SettingsInvalid(
                "sink",
                shlex.join([command.program, *command.arguments]),
                "a command without %ioc and %matchtype, which a stream has no single value for",
            )
        self._command = command
        self._children = Children(reactor, clock, kill_after)
        self._once = OneShots(
            self._children,
            clock,
            command.program,
            os.fsencode(command.executable),
            timeout,
            concurrency,
            0,
        )
        self._grace = kill_after if stream else 0.0
        self._stream: _Stream | None = None
        if stream:
            argv = command.argv("", MatchType.LIVE)
            self._stream = _Stream(self._children, clock, command, argv, timeout)

    def startService(self) -> None:
        super().startService()
        self._once.resume()
        if self._stream is not None:
            self._stream.resume()

    def stopService(self) -> Deferred[None]:
        """
        Fail what waits, and end the command.

        @return: Fires when no process is left.
        """
        super().stopService()
        self._once.stop()
        if self._stream is not None:
            self._stream.stop()
        return self._children.stop(self._grace)

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        try:
            argv = self._command.argv(value, match_type)
            line = _encode(self._command.program, context)
        except CommandRefused as e:
            return fail(e)
        if self._stream is not None:
            return self._stream.send(line)
        return self._once.run(argv, line).addCallback(lambda finished: None)


@implementer(ISink, IPullProducer)
class StdoutSink(Service):
    """
    An L{ISink} which is this process's standard output: one line of JSON each.

    A reader that is slow makes the events wait, not the reactor; one that has
    gone makes all of them fail. What is in the pipe counts as taken.
    """

    NAME = "STDOUT"
    GONE = "its reader has gone"
    STOPPED = "stopped before it took the event"

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        descriptor: int = 1,
        kill_after: float = 5.0,
    ) -> None:
        """
        @param descriptor: What to write to; it stays open.
        @param kill_after: Seconds that a reader has to take the rest when the
            service is stopped.
        """
        self._clock = clock
        self._kill_after = kill_after
        self._lines = _Lines()
        self._gone = False
        self._stopping: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._output = Output(reactor, descriptor, self._lost)
        self._output.registerProducer(self, False)

    def stopService(self) -> Deferred[None]:
        """
        Let the reader take the rest, for a while.

        @return: Fires when nothing waits any more.
        """
        super().stopService()
        if not self._lines:
            return succeed(None)
        self._stopping = Deferred()
        self._timer = self._clock.callLater(self._kill_after, self._give_up)
        return self._stopping

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        if self._gone or self._stopping is not None:
            return fail(CommandFailed(self.NAME, self.GONE if self._gone else self.STOPPED))
        try:
            line = _encode(self.NAME, context)
        except CommandRefused as e:
            return fail(e)
        taken = self._lines.add(line)
        self._write()
        return taken

    def _write(self) -> None:
        batch = self._lines.next_batch()
        if batch:
            self._output.write(batch)

    def resumeProducing(self) -> None:
        """
        The batch is in the pipe.
        """
        self._lines.taken()
        self._write()
        if not self._lines:
            self._finish()

    def stopProducing(self) -> None:
        """
        The reader has gone; L{Output} says so too.
        """

    def _lost(self) -> None:
        self._gone = True
        self._log.error("The reader of standard output has gone.")
        self._lines.fail(self.NAME, self.GONE)
        self._finish()

    def _give_up(self) -> None:
        self._timer = None
        self._output.stopWriting()
        self._lines.fail(self.NAME, self.STOPPED)
        self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)
