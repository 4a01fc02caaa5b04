"""
The command C{tbvast}: its command line and its process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from io import TextIOWrapper
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner

from tbvast import __version__
from tbvast.cli.engine import engine
from tbvast.cli.keys import KeyFiles, keygen
from tbvast.cli.publish import publish, remove
from tbvast.cli.status import status
from tbvast.cli.terminal import Screen, TerminalLogObserver
from tbvast.cli.watch import STREAMS, watch
from tbvast.errors import BusUnreachable, SettingsInvalid, TbvastError
from tbvast.service.clock import use_monotonic_time
from tbvast.values import HostPort
from tbvast.zeromq.curve import KeyUnusable

SUCCESS, INCOMPLETE, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""
The exit statuses.
"""

_EXIT_STATUSES = """\
exit status:
  0    everything was done
  1    something was not done: the bus refused it, has a later version or does not know
       it, or an input was not valid; standard error has the reason and the remedy
  2    the command line or a file cannot be used
  3    the bus did not answer
  130  interrupted, by Ctrl-C
"""

_PUBLISH = """\
Publish indicators. A FILE holds a STIX 2.1 bundle, an object, or a list of objects;
or lines, each an object or a plain observable: an address, a network, a domain, a URL,
an e-mail address, an MD5, SHA-1 or SHA-256. Blank lines and lines that begin with #
are skipped; hxxp:// and [.] are understood. Invalid items are reported on standard
error, the rest is published; an item counted as accepted is on the bus's disk.
"""

_REMOVE = """\
Remove indicators from the bus, and thereby from every bridge's engine.
"""

_WATCH = """\
Show indicators and sightings as they arrive, until Ctrl-C, even across a restart of
the bus. On a terminal it shows a table; otherwise lines of tab-separated fields: the
time, indicator or sighting, its operation or match type, the value, the event, and the
indicator's id.
"""

_STATUS = """\
Show the state of a bus, its subscriptions, and the bridges' engines. On a terminal it
shows tables; otherwise a line for each value: its path, a tab, and the value.
"""

_KEYGEN = """\
Make a CURVE key pair: DIR/NAME.key, which may be published, and DIR/NAME.key_secret,
which only its owner can read. The last line printed is for the bus's file of clients.
"""

_ENGINE = """\
Run the engine's own command as a client of a bridge's node, with the certificate that
the bridge made. Everything after -- is passed on: a pipeline, or options and a pipeline.
"""

Command = Callable[..., Coroutine[Deferred[Any], Any, bool]]
"""
Called with the reactor, a L{Screen} and its options; tells whether everything was done.
"""


def _host_port(text: str) -> HostPort:
    try:
        return HostPort.parse(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT: {e}") from None


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """
    @return: The parser of the command line: to options whose C{command} is called with them,
        and returns a L{Command} that has them.
    """
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threatbus",
        dest="bus",
        metavar="HOST:PORT",
        type=_host_port,
        default=HostPort("localhost", 13370),
        help="the manage endpoint of the bus (default: %(default)s)",
    )
    common.add_argument(
        "--curve-key",
        metavar="FILE",
        default="",
        help="the secret key for the connection: a file ending in .key_secret made by keygen",
    )
    common.add_argument(
        "--server-key",
        metavar="FILE",
        default="",
        help="the public key of the bus, a file ending in .key; needed with --curve-key",
    )
    parser = argparse.ArgumentParser(
        prog="tbvast",
        description="Publish indicators on a Threat Bus, and watch their sightings.",
        epilog=_EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tbvast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Command, help: str, description: str, connects: bool = True
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=_EXIT_STATUSES,
            parents=[common] if connects else [],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=partial(_bind, command))
        return added

    command = add("publish", publish, "publish indicators", _PUBLISH)
    command.add_argument(
        "files", metavar="FILE", nargs="+", help="a file to read; - is standard input"
    )
    command = add("remove", remove, "remove indicators", _REMOVE)
    command.add_argument(
        "names",
        metavar="ID",
        nargs="+",
        help="indicator--UUID; or a plain observable, as it was published",
    )
    command = add("watch", watch, "show indicators and sightings as they arrive", _WATCH)
    command.add_argument(
        "stream", nargs="?", choices=tuple(STREAMS), help="only these (default: both)"
    )
    command.add_argument(
        "--snapshot",
        metavar="DAYS",
        type=_whole_number,
        default=0,
        help="begin with the indicators of the last DAYS days (default: %(default)s)",
    )
    command.add_argument(
        "--count",
        metavar="N",
        type=_whole_number,
        default=0,
        help="end after N messages; 0: never (default: %(default)s)",
    )
    _add_json(command, "print each message's STIX document, one per line")
    command = add("status", status, "show the state of a bus", _STATUS)
    _add_json(command, "print the bus's reply itself")
    command = add("keygen", keygen, "make a key pair", _KEYGEN, connects=False)
    command.add_argument(
        "directory", metavar="DIR", help="the directory for the files; made if missing"
    )
    command.add_argument(
        "--name",
        metavar="NAME",
        default="tbvast",
        help="the name of the files and of the client (default: %(default)s)",
    )
    command = add("engine", engine, "run the engine's command", _ENGINE, connects=False)
    command.add_argument(
        "--config", metavar="FILE", default="", help="the configuration file of the bridge"
    )
    command.add_argument(
        "--state-dir",
        metavar="DIR",
        default="",
        help="the state directory of the bridge, if it is neither in FILE nor the default one",
    )
    command.add_argument(
        "arguments", metavar="ARGUMENT", nargs="+", help="an argument of the engine's command"
    )
    return parser


def _bind(command: Command, options: argparse.Namespace) -> Command:
    """
    Give a command its options, whose names are those of its parameters.
    """
    arguments = {name: value for name, value in vars(options).items() if name != "command"}
    if "bus" in arguments:
        arguments["keys"] = KeyFiles(arguments.pop("curve_key"), arguments.pop("server_key"))
    return partial(command, **arguments)


def _add_json(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--json", dest="as_json", action="store_true", help=help)


async def run(reactor: Any, screen: Screen, command: Command) -> int:
    """
    Run a command that has its options. It is cancelled when the reactor stops, e.g. on Ctrl-C.

    @param screen: The streams for its output and errors.
    @return: The exit status.
    """
    running = Deferred.fromCoroutine(command(reactor, screen))
    ended: Deferred[None] = Deferred()

    def interrupt() -> Deferred[None]:
        running.cancel()
        return ended

    reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    try:
        return SUCCESS if await running else INCOMPLETE
    except CancelledError:
        return INTERRUPTED
    except BrokenPipeError:
        screen.discard_output()
        return SUCCESS
    except TbvastError as e:
        screen.write_error(str(e))
        if isinstance(e, SettingsInvalid | KeyUnusable):
            return USAGE
        return UNREACHABLE if isinstance(e, BusUnreachable) else INCOMPLETE
    finally:
        ended.callback(None)


def run_process(command: Command) -> NoReturn:
    """
    Run a command in this process: with a reactor, the standard streams and the log.

    @raise SystemExit: Always, with the exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    screen = Screen(sys.stdout, sys.stderr)

    async def run_and_exit(reactor: Any) -> NoReturn:
        use_monotonic_time(reactor)
        raise SystemExit(await run(reactor, screen, command))

    globalLogBeginner.beginLoggingTo([TerminalLogObserver(screen)], redirectStandardIO=False)
    try:
        react(run_and_exit)
    except KeyboardInterrupt:  # before the reactor handled the signal
        raise SystemExit(INTERRUPTED) from None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """
    Run the command C{tbvast}.

    @param arguments: The arguments; those of the process by default.
    @raise SystemExit: Always, with the exit status.
    """
    options = make_parser().parse_args(arguments)
    run_process(options.command(options))


if __name__ == "__main__":
    main()
