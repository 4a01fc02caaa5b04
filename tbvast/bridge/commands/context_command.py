"""
A command that changes the context of sightings.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bridge.commands.command_line import Command
from tbvast.bridge.commands.failure_log import FailureLog
from tbvast.bridge.commands.json_lines import encode_line
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import IContextTransform
from tbvast.service.child_process import BackOff, Child, Children, Exit, Finished, OneShots
from tbvast.stix.sightings import MatchType

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""
The most bytes of a changed context.
"""

MAX_FAILURES_IN_A_ROW = 3
"""
The failures in a row after which events no longer wait for the next attempt.
"""


def _decode(program: str, answer: bytes | bytearray, stderr: str) -> dict[str, Any]:
    """
    @return: The changed context.
    @raise CommandFailed: If the answer is not one JSON object.
    """
    try:
        context: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise CommandFailed(program, "its answer is not a JSON object", stderr) from None
    return context


class _PendingEvent:
    """
    An event that waits for its changed context.
    """

    def __init__(self, event: dict[str, Any], argv: Sequence[bytes], line: bytes) -> None:
        """
        @param event: The event.
        @param argv: The command line for it.
        @param line: The event as one line of JSON.
        """
        self.event = event
        self.argv = argv
        self.line = line
        self.answer: Deferred[dict[str, Any]] = Deferred()


class _LineConversation:
    """
    The conversation with a running command: a line for an event, a line for its context.

    @ivar child: The process.
    @ivar sent: The events without an answer, in order.
    @ivar answered: The number of answers.
    @ivar whole: Whether the input was closed, so that the whole output is one answer.
    @ivar asked: The time at which the first of C{sent} became the first, in seconds.
    @ivar timer: The time limit of its answer.
    @ivar output: The output that has not been read as lines.
    """

    child: Child

    def __init__(self) -> None:
        self.sent: deque[_PendingEvent] = deque()
        self.answered = 0
        self.whole = False
        self.asked = 0.0
        self.timer: IDelayedCall | None = None
        self.output = bytearray()
        self._searched = 0

    def next_line(self) -> bytes | None:
        """
        Remove the next complete line from the output.

        @return: The line; C{None} if there is none yet.
        """
        end = self.output.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self.output)
            return None
        line = bytes(self.output[:end])
        del self.output[: end + 1]
        self._searched = 0
        return line

    def unread(self, line: bytes) -> None:
        """
        Put the last line back.
        """
        self.output[:0] = line + b"\n"

    def disarm(self) -> None:
        """
        Cancel the time limit.
        """
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None


@implementer(IContextTransform)
class ContextCommand(Service):
    """
    An L{IContextTransform} that runs a command.

    The command reads an event as one line of JSON on its standard input, and writes the
    changed context as JSON to its standard output.

    A command without placeholders keeps running: it gets a line for each event, and has to
    answer each with exactly one line, in order. If the first answer is not a line, the
    command's input is closed and its whole output is the answer; from then on it is run once
    for each event. A command with placeholders is run once for each event from the start.

    If an answer is late, missing or not a JSON object, the event stays unchanged. The events
    after it are given to a new process, since the answers of the old one could no longer be
    assigned.
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
        @param command: The command.
        @param reactor: The reactor that starts the processes.
        @param clock: The clock of the limits.
        @param timeout: The most seconds for an answer.
        @param patience: The most seconds for the first line, before the command's input is
            closed.
        @param concurrency: The most processes at a time, if each handles one event.
        @param in_flight: The most events without an answer of a running command.
        @param kill_after: Seconds from SIGTERM to SIGKILL.
        """
        self._command = command
        self._clock = clock
        self._timeout = timeout
        self._patience = patience
        self._in_flight = in_flight
        self._failure_log = FailureLog(self._log, clock, "events are reported unchanged")
        self._children = Children(reactor, clock, kill_after)
        self._executable = os.fsencode(command.executable)
        self._runs = OneShots(
            self._children,
            clock,
            command.program,
            self._executable,
            timeout,
            concurrency,
            MAX_ANSWER_BYTES,
        )
        self._backoff = BackOff(clock, self._feed)
        self._waiting: deque[_PendingEvent] = deque()
        self._conversation: _LineConversation | None = None
        self._streams = False
        self._once_per_event = command.per_event
        self._stopped = False

    def startService(self) -> None:
        super().startService()
        self._stopped = False
        self._runs.resume()

    def stopService(self) -> Deferred[None]:
        """
        Report the waiting events unchanged, and end the processes.

        @return: Fires when all processes have ended.
        """
        super().stopService()
        self._stopped = True
        self._backoff.cancel()
        unanswered = list(self._waiting)
        self._waiting.clear()
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.disarm()
            unanswered = [*conversation.sent, *unanswered]
        self._runs.stop()
        stopped = self._children.stop()
        for pending in unanswered:
            pending.answer.callback(pending.event)
        return stopped

    def transform(
        self, event: dict[str, Any], value: str, match_type: MatchType
    ) -> Deferred[dict[str, Any]]:
        if self._stopped or self._is_broken():
            return succeed(event)
        try:
            argv = self._command.argv(value, match_type)
            pending = _PendingEvent(event, argv, encode_line(self._command.program, event))
        except CommandRefused as e:
            self._failure_log.add(e)
            return succeed(event)
        self._waiting.append(pending)
        self._feed()
        return pending.answer

    def _is_broken(self) -> bool:
        return self._backoff.waiting and self._backoff.failures >= MAX_FAILURES_IN_A_ROW

    # One run for each event

    def _run_once(self, pending: _PendingEvent) -> None:
        (
            self._runs.run(pending.argv, pending.line)
            .addCallback(self._cb_finished)
            .addErrback(self._eb_failed, pending)
            .chainDeferred(pending.answer)
        )

    def _cb_finished(self, finished: Finished) -> dict[str, Any]:
        return _decode(self._command.program, finished.output, finished.stderr)

    def _eb_failed(self, failure: Failure, pending: _PendingEvent) -> dict[str, Any]:
        failure.trap(CommandFailed)
        error: Any = failure.value
        self._failure_log.add(error)
        return pending.event

    # One running command

    def _feed(self) -> None:
        """
        Send the waiting events, up to the limit.
        """
        while self._once_per_event and self._waiting:
            self._run_once(self._waiting.popleft())
        if not self._waiting or self._backoff.waiting:
            return
        conversation = self._conversation or self._start()
        if conversation is None or conversation.whole:
            return
        idle = not conversation.sent
        allowed = self._in_flight if self._streams else 1
        while self._waiting and len(conversation.sent) < allowed:
            pending = self._waiting.popleft()
            conversation.sent.append(pending)
            conversation.child.write(pending.line)
        if idle:
            self._arm(conversation)

    def _start(self) -> _LineConversation | None:
        conversation = _LineConversation()
        try:
            conversation.child = self._children.spawn(
                self._waiting[0].argv,
                self._executable,
                ended=partial(self._ended, conversation),
                received=partial(self._received, conversation),
            )
        except OSError as e:
            reason = f"cannot be started: {e.strerror or e}"
            self._blame(self._waiting.popleft(), CommandFailed(self._command.program, reason))
            return None
        self._conversation = conversation
        return conversation

    def _arm(self, conversation: _LineConversation) -> None:
        conversation.disarm()
        if conversation.sent:
            conversation.asked = self._clock.seconds()
            limit = self._timeout if self._streams else min(self._patience, self._timeout)
            conversation.timer = self._clock.callLater(limit, self._overdue, conversation)

    def _overdue(self, conversation: _LineConversation) -> None:
        if self._streams or conversation.whole:
            self._break_off(conversation, f"no answer within {self._timeout:g} s")
        else:
            self._read_whole_output(conversation)

    def _read_whole_output(self, conversation: _LineConversation) -> None:
        conversation.disarm()
        conversation.whole = True
        left = conversation.asked + self._timeout - self._clock.seconds()
        conversation.timer = self._clock.callLater(max(0.0, left), self._overdue, conversation)
        conversation.child.close_input()

    def _received(self, conversation: _LineConversation, data: bytes) -> None:
        if conversation is not self._conversation:
            return
        conversation.output += data
        while conversation is self._conversation and not conversation.whole:
            line = conversation.next_line()
            if line is None:
                break
            if line.strip():
                self._answered(conversation, line)
        if conversation is self._conversation and len(conversation.output) > MAX_ANSWER_BYTES:
            self._break_off(conversation, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._feed()

    def _answered(self, conversation: _LineConversation, line: bytes) -> None:
        if not conversation.sent:
            self._break_off(conversation, "more lines than events")
            return
        try:
            context = _decode(self._command.program, line, conversation.child.stderr)
        except CommandFailed as e:
            if self._streams:
                self._break_off(conversation, e.reason)
            else:
                conversation.unread(line)
                self._read_whole_output(conversation)
            return
        self._streams = True
        self._backoff.succeeded()
        conversation.answered += 1
        pending = conversation.sent.popleft()
        self._arm(conversation)
        pending.answer.callback(context)

    def _break_off(self, conversation: _LineConversation, reason: str) -> None:
        """
        End a command that is out of step. The event that it should have answered stays
        unchanged.
        """
        self._conversation = None
        conversation.disarm()
        error = CommandFailed(self._command.program, reason, conversation.child.stderr)
        blamed = conversation.sent.popleft() if conversation.sent else None
        self._waiting.extendleft(reversed(conversation.sent))
        conversation.child.end()
        self._blame(blamed, error)

    def _ended(self, conversation: _LineConversation, exit_: Exit) -> None:
        if conversation is not self._conversation:
            return
        self._conversation = None
        conversation.disarm()
        reason = "ended without an answer" if exit_.clean else str(exit_)
        error = CommandFailed(self._command.program, reason, exit_.stderr)
        context = None
        if exit_.clean and conversation.sent and conversation.output.strip():
            try:
                context = _decode(self._command.program, conversation.output, exit_.stderr)
            except CommandFailed as e:
                error = e
        done = conversation.sent.popleft() if context is not None else None
        answered = conversation.answered + (done is not None)
        blamed = None
        if conversation.sent and not (exit_.clean and answered):
            blamed = conversation.sent.popleft()
        self._waiting.extendleft(reversed(conversation.sent))
        if exit_.clean and answered == 1:
            self._once_per_event = True
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

    def _blame(self, pending: _PendingEvent | None, error: CommandFailed) -> None:
        """
        Report an event unchanged, and delay the next attempt.
        """
        self._failure_log.add(error)
        self._backoff.failed()
        unanswered = [] if pending is None else [pending]
        if self._is_broken():
            unanswered += self._waiting
            self._waiting.clear()
        for unchanged in unanswered:
            unchanged.answer.callback(unchanged.event)
