"""
Decides which plugins an embedded node may use.

A pipeline can do anything that the node's plugins can: run programs, read files, open
connections. Whoever is a client of the node, or gets a pipeline into it in any other way, shall
not be able to. The node therefore gets only what tbvast's pipelines consist of, and the plugins
that the configuration names.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable

import msgspec

from tbvast.engines.pyvast_calls import error_summary
from tbvast.errors import StartupRefused

LIST_SECONDS = 60.0
"""
The most seconds for the engine to list its plugins.
"""

_OPERATORS = """
    _block _combine_all_chunks api batch context::create_lookup_table context::enrich
    context::erase context::inspect context::list context::remove context::update deduplicate
    drop drop_null_fields each enumerate every export fields fork from from_unix_socket head
    import local measure merge partitions pass pipeline::list plugins publish read_ndjson remote
    reverse sample schemas select serve set slice sort subscribe summarize tail throttle
    to_unix_socket top unordered unroll version where write_lines write_ndjson
"""
"""
The operators of tbvast's pipelines, and others that only process events.
"""

_FORBIDDEN_FUNCTIONS = frozenset({"config", "env", "file_contents", "secret"})
"""
The functions that read something other than their arguments.
"""

_IMPLEMENTATIONS = """
    cache_ir fork_ir fork_merge_ir from_ir GenericIr If Match merge_ir OptimizeBarrierIr
    OptimizeReorderIr parallel_ir parquet SetIr sort subscribe_ir summarize UnorderedIr version_ir
    where_ir
"""
"""
The plugins without a type that implement operators.
"""

_NEEDED = frozenset(f"{_OPERATORS} {_IMPLEMENTATIONS}".split())


class Plugin(msgspec.Struct, frozen=True):
    """
    A plugin of the engine.

    @ivar name: Its name. Names of operators and functions may coincide; then they are disabled
        together.
    @ivar types: Its types; empty for a part of others, or for a connector to a system.
    """

    name: str
    types: tuple[str, ...]


def disabled_plugins(installed: Iterable[Plugin], allowed: Collection[str]) -> list[str]:
    """
    @param installed: The plugins of the node's program.
    @param allowed: The names of those that may be used in addition to those needed.
    @return: The names of the others, sorted.
    """
    kept = _NEEDED | {*allowed}
    return sorted({each.name for each in installed if each.name not in kept and _acts(each)})


def _acts(plugin: Plugin) -> bool:
    """
    Whether a plugin can do more than process events, as far as its types tell.
    """
    if not plugin.types or "operator" in plugin.types:
        return True
    return plugin.name in _FORBIDDEN_FUNCTIONS


_LIST = "plugins | select name, types | write_ndjson"


def list_plugins(program: str, settings: str) -> list[Plugin]:
    """
    List the plugins that the node's program finds. Blocks for a fraction of a second.

    @param program: The path of the node's program.
    @param settings: The path of a configuration file for a command.
    @raise StartupRefused: If it does not list them.
    """
    try:
        # Under this name, the program is a command.
        listed = subprocess.run(
            ["tenzir", f"--config={settings}", "--plugins=all", "--color=never", _LIST],
            executable=program,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIST_SECONDS,
            check=True,
        )
        plugins = msgspec.json.Decoder(Plugin).decode_lines(listed.stdout)
    except subprocess.CalledProcessError as e:
        reason = error_summary(e.stderr.decode("utf-8", "replace"))
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as e:
        reason = str(e)
    else:
        return plugins
    raise StartupRefused(f"cannot list the plugins of the engine {program}: {reason}")
