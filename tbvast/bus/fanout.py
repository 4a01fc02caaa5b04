"""
The fan-out: committed batches, each rendered once in every form that a subscription needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime

from tbvast.bus.journal.schema import MOST_BYTES
from tbvast.bus.journal.values import JournalEntry
from tbvast.protocol.frames import Item, render_document, render_numbered, stream_of
from tbvast.protocol.replay import Chunk, chunks, encode_batch, encode_item
from tbvast.protocol.topics import Dialect, Stream
from tbvast.service.turns import Turn
from tbvast.storage.set_aside import SetAside, Stage, id_in, reason_of

Refuse = Callable[[Sequence[SetAside]], object]
"""
Sets items aside that cannot be rendered.
"""


Form = tuple[Dialect, frozenset[Stream]]
"""
The form of a batch that a subscription needs.
"""

Rendered = tuple[list[int], list[bytes]]
"""
The number of the entry of each frame, and the frames, without a subscription's own topic.
"""

STEP_ITEMS = 50
STEP_BYTES = 1 << 13
"""
The most items that are rendered between two looks at the clock, and the bytes after which no more
are.
"""


def render_entries(
    dialect: Dialect, entries: Iterable[JournalEntry], stage: Stage, refuse: Refuse
) -> Rendered:
    """
    Render entries one by one. One that cannot be rendered does not affect the others.

    @param refuse: Called with the entries that cannot be rendered, if there are any.
    """
    numbers: list[int] = []
    frames: list[bytes] = []
    bad: list[SetAside] = []
    for each in entries:
        try:
            payloads = render_document(dialect, each.stream, each.raw)
        except Exception as e:  # any error may be the item's fault
            what = each.raw, each.stream.value.decode(), id_in(each.raw), each.number
            bad.append(SetAside(stage, reason_of(e), *what))
            continue
        frames += payloads
        numbers += [each.number] * len(payloads)
    if bad:
        refuse(bad)
    return numbers, frames


async def render_in_turns(
    clock: IReactorTime,
    dialect: Dialect,
    entries: Iterable[JournalEntry],
    stage: Stage,
    refuse: Refuse,
) -> Rendered:
    """
    As L{render_entries}, in as many turns of the reactor as it takes.
    """
    numbers: list[int] = []
    frames: list[bytes] = []
    turn = Turn(clock)
    for each in entries:
        if turn.over:
            await turn.end()
        found = render_entries(dialect, (each,), stage, refuse)
        numbers += found[0]
        frames += found[1]
    return numbers, frames


def render_batches(after: int, found: Iterable[Chunk]) -> Rendered:
    """
    Render chunks as consecutive batches of tbvast/1.

    @param after: The number that the first one begins after.
    @return: The first number that each stands for, and its frame.
    """
    numbers: list[int] = []
    frames: list[bytes] = []
    for chunk in found:
        numbers.append(after + 1)
        frames.append(encode_batch(after, chunk.until, chunk.items))
        after = chunk.until
    return numbers, frames


def _steps(entries: Sequence[tuple[int, Item]]) -> Iterator[Sequence[tuple[int, Item]]]:
    start = size = 0
    for end, (_, item) in enumerate(entries, 1):
        size += len(item.raw)
        if size >= STEP_BYTES or end - start == STEP_ITEMS:
            yield entries[start:end]
            start, size = end, 0
    if start < len(entries):
        yield entries[start:]


@attrs.define(eq=False, slots=False)
class CommittedBatch:
    """
    Items that were committed together, each with its number. Each form is rendered once.

    An item that cannot be rendered in one form is set aside, and left out of every form that
    is rendered later.

    @param entries: Numbers and items, by number; at least one.
    @param refuse: Called with the items that cannot be rendered.
    @ivar first: The lowest number.
    @ivar until: The highest number.
    @ivar streams: The streams of the items.
    """

    _entries: Sequence[tuple[int, Item]]
    _refuse: Refuse

    def __attrs_post_init__(self) -> None:
        self.first = self._entries[0][0]
        self.until = self._entries[-1][0]
        self.streams = frozenset([stream_of(item) for _, item in self._entries])
        self._numbered: dict[Form, Rendered] = {}
        self._chunks: dict[frozenset[Stream], list[Chunk]] = {}
        self._batches: dict[tuple[frozenset[Stream], int], Rendered] = {}

    def _entries_of(self, streams: frozenset[Stream]) -> Sequence[tuple[int, Item]]:
        if streams >= self.streams:
            return self._entries
        if not streams & self.streams:
            return ()
        return [entry for entry in self._entries if stream_of(entry[1]) in streams]

    async def prepare(self, clock: IReactorTime, forms: Iterable[Form]) -> None:
        """
        Render some forms, in as many turns of the reactor as it takes.
        """
        turn = Turn(clock)
        for dialect, streams in set(forms) - self._numbered.keys():
            numbers: list[int] = []
            frames: list[bytes] = []
            for some in _steps(self._entries_of(streams)):
                if turn.over:
                    await turn.end()
                found = self._render(dialect, some)
                numbers += found[0]
                frames += found[1]
            self._numbered[dialect, streams] = numbers, frames

    def numbered(self, dialect: Dialect, streams: frozenset[Stream]) -> Rendered:
        """
        Get a form, which is rendered now if it was not prepared.
        """
        found = self._numbered.get((dialect, streams))
        if found is None:
            found = self._render(dialect, self._entries_of(streams))
            self._numbered[dialect, streams] = found
        return found

    def _render(self, dialect: Dialect, entries: Sequence[tuple[int, Item]]) -> Rendered:
        try:
            return render_numbered(dialect, entries)
        except Exception:  # render them one by one to find it
            documents = [JournalEntry(n, stream_of(item), item.raw) for n, item in entries]
            return render_entries(dialect, documents, Stage.DELIVERY, self._set_aside)

    def _set_aside(self, bad: Sequence[SetAside]) -> None:
        numbers = {each.number for each in bad}
        self._entries = [entry for entry in self._entries if entry[0] not in numbers]
        self._refuse(bad)

    def chunks(self, streams: frozenset[Stream]) -> list[Chunk]:
        """
        @return: As L{tbvast.protocol.replay.chunks}; the last one ends with the batch.
        """
        found = self._chunks.get(streams)
        if found is None:
            if max([len(item.raw) for _, item in self._entries], default=0) > _SURELY_SENT:
                self._leave_out_long()
            found = self._chunks[streams] = list(
                chunks(
                    (number, encode_item(number, stream_of(item), item.raw))
                    for number, item in self._entries_of(streams)
                )
            )
            if found:
                found[-1] = Chunk(self.until, found[-1].items)
        return found

    def batches(self, streams: frozenset[Stream], after: int) -> Rendered:
        """
        Get the frames of tbvast/1, which subscriptions share.

        @param after: The number up to which the subscriber has everything.
        """
        found = self._batches.get((streams, after))
        if found is None:
            found = self._batches[streams, after] = render_batches(after, self.chunks(streams))
        return found

    def _leave_out_long(self) -> None:
        bad = []
        for number, item in self._entries:
            stream, size = stream_of(item), len(item.raw)
            if size > MOST_BYTES[stream]:
                reason = f"of {size} bytes, too long to be sent"
                what = item.raw, stream.value.decode(), item.id, number
                bad.append(SetAside(Stage.DELIVERY, reason, *what))
        if bad:
            self._set_aside(bad)


_SURELY_SENT = min(MOST_BYTES.values())
"""
Bytes of a document that is short enough to be sent, whatever its type.
"""
