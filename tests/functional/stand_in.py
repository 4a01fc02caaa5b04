"""
A stand-in for the C{vast} command of 2021, with its node in a folder.

It refuses every argument that the command line of that time did not have.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(sys.argv[0]).resolve().parent


def refuse(reason: str) -> NoReturn:
    """
    What the command did with what it did not understand.
    """
    sys.exit(f"!! invalid_argument: {reason}: {sys.argv[1:]}")


def load(name: str) -> Any:
    """
    A part of the node's state.
    """
    path = HERE / name
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, value: Any) -> None:
    """
    Replace a part of the node's state, at once.
    """
    new = HERE / f"{name}.new"
    new.write_text(json.dumps(value))
    new.replace(HERE / name)


def events() -> list[dict[str, Any]]:
    """
    What was imported so far.
    """
    path = HERE / "events"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def leaves(part: Any, path: str = "") -> list[tuple[str, str]]:
    """
    The strings of an event, with their paths.
    """
    if isinstance(part, dict):
        return [leaf for name, item in part.items() for leaf in leaves(item, f"{path}.{name}")]
    return [(path, part)] if isinstance(part, str) else []


CONCEPTS = {
    "net.domain": (".dns.rrname",),
    "net.hostname": (".http.hostname",),
    "net.uri": (".http.url",),
    ":string": None,
}


def holds(event: dict[str, Any], query: str) -> bool:
    """
    Whether an event fulfils a query of the few forms that are known here.
    """
    if "||" in query:
        return any(holds(event, part.strip()) for part in query.split("||"))
    if "&&" in query:
        return all(holds(event, part.strip()) for part in query.split("&&"))
    if re.fullmatch(r"[0-9a-f.:]+(/\d+)?", query):
        return any(value == query for _, value in leaves(event))
    equality = re.fullmatch(r'"([^"\\]*)" == (\S+)', query)
    if equality is None or equality[2] not in CONCEPTS:
        refuse("not a query")
    paths = CONCEPTS[equality[2]]
    # The node of the test compares names without regard to case, as its events do.
    return any(
        (paths is None or path in paths)
        and (value.lower() if path != ".http.url" else value) == equality[1]
        for path, value in leaves(event)
    )


def export(arguments: list[str]) -> None:
    """
    C{export [--max-events=N] [--low-priority] json QUERY}
    """
    if arguments == ["--help"]:
        print("--max-events=\n--low-priority")
        return
    *options, format, query = arguments
    most = None
    for option in options:
        if match := re.fullmatch(r"--max-events=([1-9]\d*)", option):
            most = int(match[1])
        elif option != "--low-priority":
            refuse("unknown option")
    if format != "json":
        refuse("unknown format")
    for event in [event for event in events() if holds(event, query)][:most]:
        print(json.dumps(event))


def import_(arguments: list[str]) -> None:
    """
    C{import --type=intel.indicator json}
    """
    if arguments != ["--type=intel.indicator", "json"]:
        refuse("unknown import")
    for line in sys.stdin:
        if set(json.loads(line)) != {"value", "type", "reference"}:
            refuse("not an indicator")


def matcher(command: str, *arguments: str) -> None:
    """
    C{matcher list|start|add|remove|attach …}
    """
    matchers = load("matchers")
    if command == "list":
        for name in matchers:
            print(name, "(disabled with 0 clients)")
        return
    if command == "start":
        *options, name = arguments
        if options != ["--mode=exact", "--match-types=ip,addr,string"]:
            refuse("unknown option")
        matchers[name] = {}
    elif command == "add":
        name, value, context = arguments
        matchers[name][value] = context
    elif command == "remove":
        name, value = arguments
        matchers[name].pop(value, None)
    elif command == "attach":
        format, name = arguments
        if format != "json" or name not in matchers:
            refuse("not to be attached")
        attach(name)
    else:
        refuse("unknown command")
    save("matchers", matchers)


def attach(name: str) -> NoReturn:
    """
    Print a sighting for each value of each event that comes.
    """
    seen = len(events())
    (HERE / "attached").touch()
    while True:
        known = load("matchers")[name]
        for event in events()[seen:]:
            seen += 1
            for _, leaf in leaves(event):
                if leaf.lower() in known:
                    indicator = {"value": leaf.lower(), "context": f'"{known[leaf.lower()]}"'}
                    print(json.dumps({"event": event, "indicator": indicator}), flush=True)
        time.sleep(0.02)


def main(arguments: list[str]) -> None:
    """
    C{-e ENDPOINT COMMAND …}
    """
    flag, endpoint, command, *rest = arguments
    if flag != "-e" or not re.fullmatch(r"[0-9.]+:\d+", endpoint):
        refuse("no endpoint")
    if command == "status" and not rest:
        print("{}")
    elif command == "version" and not rest:
        print('{\n  "VAST": "2021.12.16-0-gabc",\n  "plugins": {"matcher": "1.0"}\n}')
    elif command == "export":
        export(rest)
    elif command == "import":
        import_(rest)
    elif command == "matcher":
        matcher(*rest)
    else:
        refuse("unknown command")


if __name__ == "__main__":
    main(sys.argv[1:])
