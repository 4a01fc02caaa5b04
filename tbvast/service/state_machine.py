"""
State machines whose transitions are a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from automat import TypeMachineBuilder

_Inputs = TypeVar("_Inputs")
_Core = TypeVar("_Core")


def machine_of(
    table: str,
    inputs: Callable[[], _Inputs],
    core: type[_Core],
    enter: Callable[[_Core, str], None],
) -> Callable[[_Core], _Inputs]:
    """
    Build a machine.

    @param table: The names of the inputs, and then a line for each state, the first one first:
        the state, and for each input the state that follows, or C{-} if the input has no effect.
    @param inputs: The protocol of the inputs: methods without arguments and result.
    @param core: The type of the objects that are machines.
    @param enter: Called with the object and the state that follows.
    @return: Makes the machine of an object, in the first state.
    """
    builder = TypeMachineBuilder(inputs, core)
    names, *rows = map(str.split, table.strip().splitlines())
    states = {name: builder.state(name) for name, *_ in rows}

    def entering(state: str) -> Callable[[_Inputs, _Core], None]:
        return lambda inputs, core: enter(core, state)

    for name, *cells in rows:
        for input, following in zip(names, cells, strict=True):
            upon = states[name].upon(getattr(inputs, input))
            if following == "-":
                upon.loop().returns(None)
            else:
                upon.to(states[following])(entering(following))
    return builder.build()
