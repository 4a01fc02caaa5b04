"""
Tests for L{tbvast.service.state_machine}.
"""

from __future__ import annotations

from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.state_machine import machine_of

TABLE = """
        switch  stop
off     on      over
on      off     over
over    -       -
"""


class Inputs(Protocol):
    """
    The inputs of a L{Lamp}.
    """

    def switch(self) -> None: ...
    def stop(self) -> None: ...


class Lamp:
    """
    A machine that notes the states that it enters.

    @ivar stops: Whether it stops as soon as it is on.
    """

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.stops = False
        self.machine = MACHINE(self)

    def enter(self, state: str) -> None:
        if state == "on" and self.stops:
            self.machine.stop()
        self.entered.append(state)


MACHINE = machine_of(TABLE, Inputs, Lamp, Lamp.enter)


class MachineTests(SynchronousTestCase):
    """
    Tests for L{machine_of}.
    """

    def test_first(self) -> None:
        """
        A machine is in the first state, which it has not entered.
        """
        self.assertEqual(Lamp().entered, [])

    def test_transitions(self) -> None:
        """
        An input leads to the state that the table names, until it has no effect.
        """
        lamp = Lamp()
        for input in (lamp.machine.switch, lamp.machine.switch, lamp.machine.stop):
            input()
        self.assertEqual(lamp.entered, ["on", "off", "over"])
        lamp.machine.switch()
        self.assertEqual(lamp.entered, ["on", "off", "over"])

    def test_separate(self) -> None:
        """
        Each object has a machine of its own.
        """
        lamp, other = Lamp(), Lamp()
        lamp.machine.stop()
        other.machine.switch()
        self.assertEqual(other.entered, ["on"])

    def test_nested(self) -> None:
        """
        An input that is given while a state is entered takes effect afterwards.
        """
        lamp = Lamp()
        lamp.stops = True
        lamp.machine.switch()
        self.assertEqual(lamp.entered, ["on", "over"])
