"""The names that methods may not give to their options are exactly those that the command and its recipes use."""

from dataclasses import fields

import typer.main

from taskmerge.cli.commands import load
from taskmerge.cli.program import app
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.options import RunOptions
from taskmerge.methods.options import RESERVED
from taskmerge.methods.registry import DEFAULT, methods
from taskmerge.specs.load import KEYS
from taskmerge.specs.merge import MergeSpec


def merge_command() -> typer.core.TyperCommand:
    load()
    return typer.main.get_command(app).commands["merge"]


def test_the_list_is_the_commands_and_the_recipes() -> None:
    parameters = merge_command().params
    flags = {name[2:].replace("-", "_") for parameter in parameters for name in parameter.opts if name[:2] == "--"}
    keywords = {field.name for options in (MergeSpec, InputOptions, RunOptions) for field in fields(options)}
    assert {*flags, *keywords, *KEYS, "inputs", "suite", "help"} == RESERVED


def test_no_method_has_such_an_option() -> None:
    assert not RESERVED & {name for method in methods().values() for name in method.settings}


def test_the_help_names_the_default_method() -> None:
    (option,) = (parameter for parameter in merge_command().params if parameter.name == "method")
    assert f"(default: {DEFAULT})" in option.help
