"""
Settings from a configuration file and from command line options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from tbvast.errors import SettingsInvalid
from tbvast.settings.schema import SECTIONS, BridgeSettings, PluginSettings, Settings
from tbvast.settings.types import convert, types_of
from tbvast.settings.validation import key_label, refuse_unknown, require_mapping, validate_section

S = TypeVar("S", PluginSettings, BridgeSettings)


def load(path: str) -> Settings:
    """
    Read a configuration file.

    @raise SettingsInvalid: If the file cannot be read or is not valid.
    """
    return decode(read_file(path, "--config"), key_label(path))


def read_file(path: str, label: str) -> bytes:
    """
    Read a file that the user names.

    @param label: The name of the option or argument, for the error.
    @raise SettingsInvalid: If the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise SettingsInvalid(label, path, f"a file that can be read: {reason}") from e


def decode(text: bytes, name: str = "configuration") -> Settings:
    """
    Validate the text of a configuration file.

    @param text: YAML, in UTF-8 or UTF-16.
    @param name: The name of the file in errors.
    @raise SettingsInvalid: If the text is not valid.
    """
    document = require_mapping(_parse_yaml(text, name), name)
    refuse_unknown(document, "", SECTIONS)
    settings = Settings(
        plugin=validate_section(document.get("plugin"), "plugin", PluginSettings),
        bridge=validate_section(document.get("bridge"), "bridge", BridgeSettings),
    )
    settings.plugin.check_consistency({})
    settings.bridge.check_consistency({})
    return settings


def override(settings: S, given: Mapping[str, str]) -> S:
    """
    Apply command line options.

    @param settings: The settings without them.
    @param given: The arguments of the options, by the name of the key.
    @return: New settings with the options applied.
    @raise SettingsInvalid: If an argument is not acceptable; the error names the option.
    """
    known = types_of(type(settings))
    values = {
        name: convert(text, known[name], option_name(name), is_text=True)
        for name, text in given.items()
    }
    changed = msgspec.structs.replace(settings, **values)
    changed.check_consistency({name: option_name(name) for name in given})
    return changed


def option_name(name: str) -> str:
    """
    The command line option that sets a key, e.g. C{--state-dir} for C{state_dir}.
    """
    return "--" + name.replace("_", "-")


def _parse_yaml(text: bytes, name: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for path, first, again in _repeated_keys(node, "", set()):
            both = f"lines {first.start_mark.line + 1} and {again.start_mark.line + 1}"
            raise SettingsInvalid(path, again.value, f"a key that may be given twice ({both})")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        lines = text.decode("utf-8", "replace").splitlines()
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        raise SettingsInvalid(where, line.strip(), f"valid YAML: {e.problem}") from e
    except SettingsInvalid:
        raise
    except Exception as e:
        # PyYAML does not wrap the errors of its own constructors and decoder.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise SettingsInvalid(name, text, f"valid YAML: {reason}") from e


def _repeated_keys(
    node: yaml.Node, path: str, seen: set[int]
) -> Iterator[tuple[str, yaml.ScalarNode, yaml.ScalarNode]]:
    """
    The keys that occur twice in a mapping, at any depth: the path, the first node and the second.

    @param seen: The ids of the visited nodes: an alias may name its own parent.
    """
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    first: dict[str, yaml.ScalarNode] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        where = f"{path}.{key_label(key.value)}" if path else key_label(key.value)
        if key.value in first:
            yield where, first[key.value], key
        first[key.value] = key
        yield from _repeated_keys(value, where, seen)
