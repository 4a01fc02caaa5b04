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
from tbvast.values import MatchType

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""
The most bytes of a changed context.
"""

MAX_FAILURES_IN_A_ROW = 3
"""
After so many failures in a row, events do not wait for a command to be tried again.
"""


def _decode(program: str, answer: bytes | bytearray, stderr: str) -> dict[str, Any]:
    """
    @raise CommandFailed: If it is not one JSON object.
    """
    try:
        context: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise CommandFailed(program, "its answer is not a JSON object", stderr) from None
    return context


class _PendingEvent:
    """
    An event whose changed context is waited for.
    """

    def __init__(self, event: dict[str, Any], argv: Sequence[bytes], line: bytes) -> None:
        self.event = event
        self.argv = argv
        self.line = line
        self.answer: Deferred[dict[str, Any]] = Deferred()


class _LineConversation:
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
        self.sent: deque[_PendingEvent] = deque()
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
class ContextCommand(Service):
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
        self._failure_log = FailureLog(self._log, clock, "events are reported unchanged")
        self._children = Children(reactor, clock, kill_after)
        self._executable = os.fsencode(command.executable)
        self._once = OneShots(
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
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.disarm()
            questions = [*conversation.sent, *questions]
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
            question = _PendingEvent(event, argv, encode_line(self._command.program, event))
        except CommandRefused as e:
            self._failure_log.add(e)
            return succeed(event)
        self._waiting.append(question)
        self._feed()
        return question.answer

    def _is_broken(self) -> bool:
        return self._backoff.waiting and self._backoff.failures >= MAX_FAILURES_IN_A_ROW

    # Once for each event.

    def _ask_once(self, question: _PendingEvent) -> None:
        (
            self._once.run(question.argv, question.line)
            .addCallback(self._cb_finished)
            .addErrback(self._eb_failed, question)
            .chainDeferred(question.answer)
        )

    def _cb_finished(self, finished: Finished) -> dict[str, Any]:
        return _decode(self._command.program, finished.output, finished.stderr)

    def _eb_failed(self, failure: Failure, question: _PendingEvent) -> dict[str, Any]:
        failure.trap(CommandFailed)
        error: Any = failure.value
        self._failure_log.add(error)
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
        conversation = self._conversation or self._start()
        if conversation is None or conversation.whole:
            return
        idle = not conversation.sent
        allowed = self._in_flight if self._streams else 1
        while self._waiting and len(conversation.sent) < allowed:
            question = self._waiting.popleft()
            conversation.sent.append(question)
            conversation.child.write(question.line)
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
            self._take_whole(conversation)

    def _take_whole(self, conversation: _LineConversation) -> None:
        conversation.disarm()
        conversation.whole = True
        left = conversation.asked + self._timeout - self._clock.seconds()
        conversation.timer = self._clock.callLater(max(0.0, left), self._overdue, conversation)
        conversation.child.close_input()

    def _received(self, conversation: _LineConversation, data: bytes) -> None:
        if conversation is not self._conversation:
            return
        conversation.said += data
        while conversation is self._conversation and not conversation.whole:
            line = conversation.next_line()
            if line is None:
                break
            if line.strip():
                self._answered(conversation, line)
        if conversation is self._conversation and len(conversation.said) > MAX_ANSWER_BYTES:
            self._break_off(conversation, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._feed()

    def _answered(self, conversation: _LineConversation, line: bytes) -> None:
        if not conversation.sent:
            self._break_off(conversation, "a line more than there were events")
            return
        try:
            context = _decode(self._command.program, line, conversation.child.stderr)
        except CommandFailed as e:
            if self._streams:
                self._break_off(conversation, e.reason)
            else:
                conversation.unread(line)
                self._take_whole(conversation)
            return
        self._streams = True
        self._backoff.succeeded()
        conversation.answered += 1
        question = conversation.sent.popleft()
        self._arm(conversation)
        question.answer.callback(context)

    def _break_off(self, conversation: _LineConversation, reason: str) -> None:
        """
        End a command that is out of step; the event it should have answered
        stays as it is.
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
        if exit_.clean and conversation.sent and conversation.said.strip():
            try:
                context = _decode(self._command.program, conversation.said, exit_.stderr)
            except CommandFailed as e:
                error = e
        done = conversation.sent.popleft() if context is not None else None
        answered = conversation.answered + (done is not None)
        blamed = None
        if conversation.sent and not (exit_.clean and answered):
            blamed = conversation.sent.popleft()
        self._waiting.extendleft(reversed(conversation.sent))
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

    def _blame(self, question: _PendingEvent | None, error: CommandFailed) -> None:
        """
        Report the event unchanged, and try the command again later.
        """
        self._failure_log.add(error)
        self._backoff.failed()
        questions = [] if question is None else [question]
        if self._is_broken():
            questions += self._waiting
            self._waiting.clear()
        for unchanged in questions:
            unchanged.answer.callback(unchanged.event)
