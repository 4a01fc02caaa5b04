"""
How pydoctor reads tbvast: C{make check} uses this, and pyproject.toml names it.
"""

from __future__ import annotations

import ast

from pydoctor.extensions import ExtRegistrar, ModuleVisitorExt
from pydoctor.model import System


class BareAnnotations(ModuleVisitorExt):
    """
    Replaces C{Annotated[X, ...]} by C{X}. pydoctor would read the placeholders of options, which
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


class AttrsConstructors(ModuleVisitorExt):
    """
    Shows pydoctor the constructors that C{attrs.define} makes, whose parameters are documented
    with their classes.
    """

    when = ModuleVisitorExt.When.BEFORE

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """
        Visit a class.
        """
        if not any(ast.unparse(each).startswith("attrs.") for each in node.decorator_list):
            return
        parameters = [ast.arg("self")]
        for statement in node.body:
            match statement:
                case ast.AnnAssign(value=ast.Call(keywords=[ast.keyword("init"), *_])):
                    pass
                case ast.AnnAssign(target=ast.Name(name), annotation=annotation):
                    parameters.append(ast.arg(name.lstrip("_"), annotation))
        constructor = ast.parse("def __init__(self) -> None: ...").body[0]
        assert isinstance(constructor, ast.FunctionDef)
        constructor.args.args = parameters
        for each in ast.walk(constructor):
            ast.copy_location(each, node)
        node.body.append(constructor)


class ApiSystem(System):
    """
    pydoctor's system, with this module as an extension.
    """

    custom_extensions = [__name__]


def setup_pydoctor_extension(registrar: ExtRegistrar) -> None:
    """
    Register the extensions; pydoctor calls it.
    """
    registrar.register_astbuilder_visitor(BareAnnotations, AttrsConstructors)
