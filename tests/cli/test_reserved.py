"""The names that methods may not give to their options are exactly those that the command and its recipes use."""

from dataclasses import fields
from inspect import signature

import typer.main

import taskmerge
from taskmerge.cli.adapt_words import AdaptWords
from taskmerge.cli.commands import load
from taskmerge.cli.program import app
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.options import RunOptions
from taskmerge.methods.adaptive_registry import RECOMMENDED, adaptive_methods
from taskmerge.methods.options import RESERVED
from taskmerge.methods.registry import DEFAULT, methods
from taskmerge.specs.load import KEYS
from taskmerge.specs.merge import MergeSpec


def command(name: str) -> typer.core.TyperCommand:
    load()
    return typer.main.get_command(app).commands[name]


def test_the_list_is_the_commands_and_the_recipes() -> None:
    parameters = command("merge").params
    flags = {name[2:].replace("-", "_") for parameter in parameters for name in parameter.opts if name[:2] == "--"}
    keywords = {field.name for options in (MergeSpec, InputOptions, RunOptions) for field in fields(options)}
    python = {name.rstrip("_") for name in signature(taskmerge.merge).parameters}
    assert {*flags, *keywords, *KEYS, *python, "suite", "help"} == RESERVED


def test_no_method_has_such_an_option() -> None:
    assert not RESERVED & {name for method in methods().values() for name in method.settings}


def test_no_adaptive_method_has_an_option_of_adapt_but_for_origin_which_is_handed_on() -> None:
    own = {name for method in adaptive_methods().values() for name in method.settings}
    assert own & {field.name for field in fields(AdaptWords)} == {"origin"}


def test_the_help_names_the_default_methods() -> None:
    for name, default in (("merge", DEFAULT), ("adapt", RECOMMENDED)):
        (option,) = (parameter for parameter in command(name).params if parameter.name == "method")
        assert f"(default: {default})" in option.help
