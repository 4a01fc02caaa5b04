"""
C{tbvast}: the command for people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NoReturn, TextIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner

from tbvast import __version__
from tbvast.cli.keys import KeyFiles, keygen
from tbvast.cli.publish import publish, remove
from tbvast.cli.status import status
from tbvast.cli.terminal import Screen, TerminalLogObserver
from tbvast.cli.watch import STREAMS, watch
from tbvast.errors import BusUnreachable, SettingsInvalid, TbvastError
from tbvast.service.clock import use_monotonic_time
from tbvast.values import HostPort
from tbvast.zeromq.curve import KeyUnusable

DONE = 0
NOT_ALL = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

_STATUSES = """\
exit status:
  0    all of it was done
  1    not all of it was done: the bus refused something, has a later version or does not
       know it, or an input was not valid; standard error says what, and what to do
  2    the command line or a file cannot be used
  3    the bus did not answer
  130  interrupted, by Ctrl-C
"""

_PUBLISH = """\
Publish indicators. A FILE holds a STIX 2.1 bundle, an object, or a list of objects;
or a line for each object or plain observable: an address, a network, a domain, a URL,
an e-mail address, an MD5, SHA-1 or SHA-256. Blank lines and those that begin with #
are left out; hxxp:// and [.] are understood. What is not valid is named on standard
error, the rest is published; once it is counted as accepted, it is on the bus's disk.
"""

_REMOVE = """\
Remove indicators from the bus, and so from every bridge's engine.
"""

_WATCH = """\
Show indicators and sightings as they come, until Ctrl-C; across a restart of the bus,
too. On a terminal a table; otherwise lines of the time, indicator or sighting, what
it does or how it was found, the value, the event, and the indicator's id, with tabs
between them.
"""

_STATUS = """\
Show how a bus is doing, who has subscribed to it, and how the bridges' engines are
doing. On a terminal tables; otherwise a line for each value, with a tab before it.
"""

_KEYGEN = """\
Make a CURVE key pair: DIR/NAME.key, which may be given away, and DIR/NAME.key_secret,
which only its owner can read. The last line printed is the one for the bus's file of
clients.
"""

Command = Callable[[Any, Screen], Coroutine[Deferred[Any], Any, bool]]


def _host_port(text: str) -> HostPort:
    try:
        return HostPort.parse(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT: {e}") from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """
    The command line.
    """
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threatbus",
        metavar="HOST:PORT",
        type=_host_port,
        default=HostPort("localhost", 13370),
        help="the manage endpoint of the bus (default: %(default)s)",
    )
    common.add_argument(
        "--curve-key",
        metavar="FILE",
        default="",
        help="the key to show to the bus: a file ending in .key_secret that keygen made",
    )
    common.add_argument(
        "--server-key",
        metavar="FILE",
        default="",
        help="the public key of the bus, a file ending in .key; needed with --curve-key",
    )
    whole = argparse.ArgumentParser(
        prog="tbvast",
        description="Publish indicators on a Threat Bus, and see what comes of them.",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"tbvast {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, help: str, description: str, asks: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=_STATUSES,
            parents=[common] if asks else [],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    command = add("publish", "publish indicators", _PUBLISH)
    command.add_argument(
        "file", metavar="FILE", nargs="+", help="what to read; - is standard input"
    )
    command.set_defaults(command=lambda o: partial(publish, **_bus(o), files=o.file))

    command = add("remove", "remove indicators", _REMOVE)
    command.add_argument(
        "id",
        metavar="ID",
        nargs="+",
        help="indicator--UUID; or a plain observable, as it was published",
    )
    command.set_defaults(command=lambda o: partial(remove, **_bus(o), names=o.id))

    command = add("watch", "show indicators and sightings as they come", _WATCH)
    command.add_argument(
        "stream", nargs="?", choices=tuple(STREAMS), help="only these (default: both)"
    )
    command.add_argument(
        "--snapshot",
        metavar="DAYS",
        type=_whole,
        default=0,
        help="begin with the indicators of the last DAYS days (default: %(default)s)",
    )
    command.add_argument(
        "--count",
        metavar="N",
        type=_whole,
        default=0,
        help="end after N messages; 0: never (default: %(default)s)",
    )
    _add_json(command, "print each message's STIX document, one per line")
    command.set_defaults(
        command=lambda o: partial(
            watch,
            **_bus(o),
            streams=tuple(STREAMS.values()) if o.stream is None else (STREAMS[o.stream],),
            snapshot=o.snapshot,
            count=o.count,
            as_json=o.json,
        )
    )

    command = add("status", "show how a bus is doing", _STATUS)
    _add_json(command, "print the bus's own answer")
    command.set_defaults(command=lambda o: partial(status, **_bus(o), as_json=o.json))

    command = add("keygen", "make a key pair", _KEYGEN, asks=False)
    command.add_argument("directory", metavar="DIR", help="where to; made if it is not there")
    command.add_argument(
        "--name",
        metavar="NAME",
        default="tbvast",
        help="what the files and the client are called (default: %(default)s)",
    )
    command.set_defaults(command=lambda o: partial(keygen, directory=o.directory, name=o.name))
    return whole


def _bus(options: argparse.Namespace) -> dict[str, Any]:
    """
    Which bus to ask, and how, as every command that asks one takes it.
    """
    return {
        "bus": options.threatbus,
        "keys": KeyFiles(options.curve_key, options.server_key),
    }


def _add_json(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--json", action="store_true", help=help)


async def run(reactor: Any, screen: Screen, command: Command) -> int:
    """
    Run a command; cancelled when the reactor is stopped, by Ctrl-C say.

    @return: The exit status.
    """
    running = Deferred.fromCoroutine(command(reactor, screen))
    ended: Deferred[None] = Deferred()

    def interrupt() -> Deferred[None]:
        running.cancel()
        return ended

    reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    try:
        return DONE if await running else NOT_ALL
    except CancelledError:
        return INTERRUPTED
    except BrokenPipeError:
        screen.discard_output()
        return DONE
    except (SettingsInvalid, KeyUnusable) as e:
        screen.write_error(str(e))
        return USAGE
    except BusUnreachable as e:
        screen.write_error(str(e))
        return UNREACHABLE
    except TbvastError as e:
        screen.write_error(str(e))
        return NOT_ALL
    finally:
        ended.callback(None)


async def _run(reactor: Any, screen: Screen, command: Command) -> NoReturn:
    use_monotonic_time(reactor)
    raise SystemExit(await run(reactor, screen, command))


def start(command: Command) -> NoReturn:
    """
    Run a command as what this process is for.

    @raise SystemExit: Always.
    """
    for stream in (sys.stdout, sys.stderr):
        _make_lenient(stream)
    screen = Screen(sys.stdout, sys.stderr)
    globalLogBeginner.beginLoggingTo([TerminalLogObserver(screen)], redirectStandardIO=False)
    try:
        react(partial(_run, screen=screen, command=command))
    except KeyboardInterrupt:  # before there was a reactor to take it
        raise SystemExit(INTERRUPTED) from None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """
    @param arguments: Instead of the command line's.
    @raise SystemExit: Always.
    """
    options = parser().parse_args(arguments)
    start(options.command(options))


def _make_lenient(stream: TextIO) -> None:
    """
    Have characters that the terminal does not know be written as escapes.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
