"""
How pydoctor reads tbvast: C{make check} uses this, and pyproject.toml names it.
"""

from __future__ import annotations

import ast

from pydoctor.extensions import ExtRegistrar, ModuleVisitorExt
from pydoctor.model import System


class BareAnnotations(ModuleVisitorExt):
    """
    Replaces C{Annotated[X, ...]} by C{X}. pydoctor would read the help texts of the settings, which
    are strings there, as forward references.
    """

    when = ModuleVisitorExt.When.BEFORE

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """
        Visit an annotated assignment.
        """
        match node.annotation:
            case ast.Subscript(value=ast.Name("Annotated"), slice=ast.Tuple([bare, *_])):
                node.annotation = bare


class ApiSystem(System):
    """
    pydoctor's system, with this module as an extension.
    """

    custom_extensions = [__name__]


def setup_pydoctor_extension(registrar: ExtRegistrar) -> None:
    """
    Register this extension; pydoctor calls it.
    """
    registrar.register_astbuilder_visitor(BareAnnotations)
