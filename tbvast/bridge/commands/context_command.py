"""
A command that changes the context of sightings.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from tbvast.bridge.commands.processes import CommandService, CommandStream, encode_line
from tbvast.errors import CommandFailed
from tbvast.interfaces import IContextTransform
from tbvast.service.child_process import Exit
from tbvast.service.lines import LineBuffer
from tbvast.stix.sightings import MatchType

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""
The most bytes of a changed context.
"""

MAX_UNANSWERED_EVENTS, MAX_FAILURES_IN_A_ROW = 64, 3
"""
The most events without an answer, if one process gets many; and the failures in a row after
which events no longer wait for the next attempt.
"""

Context = dict[str, Any]

_Event = tuple[bytes, Deferred[Context | None]]


def _decode(program: str, answer: bytes, stderr: str) -> Context:
    """
    @raise CommandFailed: If the answer is not one JSON object.
    """
    try:
        return msgspec.json.decode(answer, type=Context)
    except (ValueError, RecursionError):
        raise CommandFailed(program, "its answer is not a JSON object", stderr) from None


@attrs.define(eq=False, slots=False)
class _TransformStream(CommandStream):
    """
    A running command that answers each line with one line, in order.

    After a missing, late or malformed answer, the command is out of step: its event stays
    unchanged, and the events behind it are given to a new process.
    """

    _waiting: deque[_Event] = attrs.field(init=False, factory=deque)
    _sent: deque[_Event] = attrs.field(init=False, factory=deque)
    _lines: LineBuffer = attrs.field(init=False, factory=LineBuffer)
    _has_answered: bool = attrs.field(init=False, default=False)

    def ask(self, line: bytes) -> Deferred[Context | None]:
        """
        Send a line.

        @return: Fires with the changed context; with C{None} if the event stays unchanged.
        """
        if self._is_broken:
            return succeed(None)
        answer: Deferred[Context | None] = Deferred()
        self._waiting.append((line, answer))
        self._feed()
        return answer

    def stop(self) -> None:
        super().stop()
        unanswered = [*self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        for _, answer in unanswered:
            answer.callback(None)

    @property
    def _is_broken(self) -> bool:
        return self._backoff.waiting and self._backoff.failures >= MAX_FAILURES_IN_A_ROW

    def _feed(self) -> None:
        if not self._waiting or self._backoff.waiting:
            return
        if self._child is None:
            self._lines = LineBuffer()
            self._has_answered = False
            self._start()
        if self._child is None:
            return
        idle = not self._sent
        while self._waiting and len(self._sent) < MAX_UNANSWERED_EVENTS:
            self._sent.append(self._waiting.popleft())
            self._child.write(self._sent[-1][0])
        if idle:
            self._limit_answer()

    def _limit_answer(self) -> None:
        self._cancel_timer()
        if self._sent:
            reason = f"no answer within {self._timeout:g} s"
            self._call_later(self._timeout, self._break_off, reason)

    def received(self, data: bytes) -> None:
        child = self._child
        for line in self._lines.add(data):
            if line.strip():
                self._answered(line)
            if self._child is not child:
                return
        if self._lines.size > MAX_ANSWER_BYTES:
            self._break_off(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        self._feed()

    def _answered(self, line: bytes) -> None:
        assert self._child is not None
        if not self._sent:
            self._break_off("more lines than events")
            return
        try:
            context = _decode(self._service.command.program, line, self._child.stderr)
        except CommandFailed as e:
            self._break_off(e.reason)
            return
        self._backoff.succeeded()
        self._has_answered = True
        _, answer = self._sent.popleft()
        self._limit_answer()
        answer.callback(context)

    def _break_off(self, reason: str) -> None:
        child, self._child = self._child, None
        assert child is not None
        child.disown()
        child.end()
        self._failed(reason, child.stderr)

    def ended(self, exit_: Exit) -> None:
        if exit_.clean and (rest := self._lines.take_rest()).strip():
            self._answered(rest)
        if self._child is None:
            return
        self._child = None
        if exit_.clean and self._has_answered:
            self._resend()
            self._feed()
        else:
            self._failed("ended without an answer" if exit_.clean else str(exit_), exit_.stderr)

    def _resend(self) -> None:
        self._cancel_timer()
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()

    def _failed(self, reason: str, stderr: str = "") -> None:
        """
        Leave the next event unchanged, or all that wait if the command keeps failing.
        """
        super()._failed(reason, stderr)
        self._resend()
        count = len(self._waiting) if self._is_broken else min(1, len(self._waiting))
        for _, answer in [self._waiting.popleft() for _ in range(count)]:
            answer.callback(None)


@implementer(IContextTransform)
class ContextCommand(CommandService[_TransformStream]):
    """
    An L{IContextTransform} that runs a command.

    The command reads an event as one line of JSON on its standard input, and writes the changed
    context as JSON to its standard output. It runs once for each event. As a stream, one command
    keeps running, and answers each line with exactly one line, in order.

    If an answer is late, missing or not a JSON object, the event stays unchanged.
    """

    stream_type = _TransformStream
    consequence = "events are reported unchanged"
    max_output = MAX_ANSWER_BYTES

    def transform(self, event: Context, value: str, match_type: MatchType) -> Deferred[Context]:
        return Deferred.fromCoroutine(self._transform(event, value, match_type))

    async def _transform(self, event: Context, value: str, match_type: MatchType) -> Context:
        if not self.running:
            return event
        program = self.command.program
        try:
            argv = self.command.argv(value, match_type)
            line = encode_line(program, event)
            if self.stream is not None:
                context = await self.stream.ask(line)
                return event if context is None else context
            return _decode(program, *await self.run(argv, line))
        except CommandFailed as e:
            self.log_failure(e)
            return event
