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
from tbvast.settings.types import keys_of
from tbvast.settings.validation import key_label, refuse_unknown, require_mapping, validate_section

S = TypeVar("S", PluginSettings, BridgeSettings)


def load(path: str) -> Settings:
    """
    Read a configuration file.

    @param path: The file's path.
    @raise SettingsInvalid: If the file cannot be read, or anything in it cannot
        be used.
    """
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise SettingsInvalid("--config", path, f"a file that can be read: {reason}") from e
    return decode(text, key_label(path))


def decode(text: bytes, name: str = "configuration") -> Settings:
    """
    Validate the text of a configuration file.

    @param name: What error messages call the file.
    @raise SettingsInvalid: If anything in it cannot be used.
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

    @param given: What the command line gives, by the name of the key.
    @raise SettingsInvalid: If it cannot be used; it names the option.
    """
    known = keys_of(type(settings))
    values = {}
    for name, text in given.items():
        try:
            values[name] = known[name].type.parse(text)
        except ValueError as e:
            raise SettingsInvalid(option_name(name), text, known[name].type.expected) from e
    changed = msgspec.structs.replace(settings, **values)
    changed.check_consistency({name: option_name(name) for name in given})
    return changed


def option_name(name: str) -> str:
    """
    The command line option that sets a key: C{--state-dir} for C{state_dir}.
    """
    return "--" + name.replace("_", "-")


def _parse_yaml(text: bytes, name: str) -> Any:
    """
    The value of a YAML document, no key of which is given twice.
    """
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
        # PyYAML lets through what its own constructors and decoder stumble over.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise SettingsInvalid(name, text, f"valid YAML: {reason}") from e


def _repeated_keys(
    node: yaml.Node, path: str, seen: set[int]
) -> Iterator[tuple[str, yaml.ScalarNode, yaml.ScalarNode]]:
    """
    The keys that a mapping, at any depth, has twice: path, first and second.

    @param seen: The nodes visited so far, for an alias may name its own parent.
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
