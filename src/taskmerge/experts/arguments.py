"""What a command or a call is given to work on: paths, globs, `name=path` and state dicts become (task, place)."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from taskmerge.checkpoint.held import Held, Place
from taskmerge.checkpoint.weights import default_name
from taskmerge.errors import BadFile, UsageError, nearest

State = Mapping[str, Tensor]
"""A state dict: tensors by name."""
Arguments = Sequence[str | Path] | Mapping[str, str | Path | State | Held]
"""Paths (files, folders, globs, `name=path`), or paths and state dicts by task."""
REPOSITORY = re.compile(r"(?:hf:/+)?([\w.-]+/[\w-][\w.-]*)(?<!\.safetensors)(?<!\.json)(?<!\.bin)(?<!\.pt)")
"""What a hub's repository is called, and no file of weights."""
STATES = 'such as {"a": "a.safetensors"}, or {"a": model_a.state_dict(), "b": model_b.state_dict()}'


def named(arguments: Arguments) -> list[tuple[str, Place]]:
    """(task, place) for every argument; an argument that exists is a path even with `=` in it."""
    arguments = checked(arguments)
    if isinstance(arguments, Mapping):
        return [(_task(task, str(task)), existing(placed(task, value))) for task, value in arguments.items()]
    named: list[tuple[str, Place]] = []
    for argument in arguments:
        text = str(argument)
        if os.path.exists(text):
            named.append((_default(Path(text)), Path(text)))
        elif "=" in text:
            task, _, path = text.partition("=")
            named.append((_task(task, text), existing(Path(path))))
        elif glob.has_magic(text):
            paths = sorted(glob.glob(text))
            if not paths:
                raise BadFile("no file matches", where=text, hint="check the pattern and the working directory")
            named += [(_default(Path(path)), Path(path)) for path in paths]
        else:
            named.append((_default(Path(text)), existing(Path(text))))
    return named


def named_files(arguments: Arguments, what: str) -> list[tuple[str, Path]]:
    """(task, path) for every argument of `what` reads files alone. `UsageError` for state dicts in memory."""
    found: list[tuple[str, Path]] = []
    for task, place in named(arguments):
        if isinstance(place, Held):
            raise UsageError(f"{what} reads files, and `{task}` is in memory", where="inputs", hint="save it first")
        found.append((task, place))
    return found


def placed(name: object, value: object) -> Place:
    """Where an input is: a path, or a state dict in memory. `UsageError` for anything else."""
    if isinstance(value, str | Path | Held):
        return Path(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return Held(str(name), value)
    what = f"`{name}` is neither a path nor a state dict, but a {type(value).__name__}"
    raise UsageError(what, where="inputs", hint=STATES)


def checked(arguments: object) -> Arguments:
    """A sequence of paths, of which there may be one, or a mapping. `UsageError` for anything else."""
    if isinstance(arguments, str | Path | Mapping):
        return arguments if isinstance(arguments, Mapping) else [arguments]
    if not isinstance(arguments, Sequence):
        what = f"experts are paths, or state dicts by name, not a {type(arguments).__name__}"
        raise UsageError(what, where="inputs", hint=STATES)
    for argument in arguments:
        if not isinstance(argument, str | Path):
            what = f"a {type(argument).__name__} is no path, and has no name"
            raise UsageError(what, where="inputs", hint=STATES)
    return arguments


def _default(path: Path) -> str:
    """The name that a path gives its task."""
    name = default_name(path)
    try:
        name.encode()
    except UnicodeEncodeError:  # the file's name is not UTF-8, as metadata must be
        shown = name.encode("unicode_escape").decode()
        raise UsageError(f"`{shown}` is no name of a task", where=shown, hint="name it: `mnist=PATH`") from None
    return name


def _task(name: object, where: str) -> str:
    """A task's name, which is part of the names of files and of folders."""
    if not isinstance(name, str) or not name or name.startswith(".") or any(sign in "/\\\0" for sign in name):
        raise UsageError(f"`{name}` is no name of a task", where=where, hint="use letters and digits: `mnist=PATH`")
    return name


def existing(path: Place) -> Place:
    """The path if there is something; the nearest name in its folder is the hint."""
    if isinstance(path, Held):
        return path
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadFile(f"cannot be opened: {reason}", where=str(path), hint="check path and permissions") from error
    else:
        return path
    raise BadFile("there is no such file", where=str(path), hint=_elsewhere(path))


def _elsewhere(path: Path) -> str:
    """Where what is not there may be: a name nearby, or a hub's repository that the path looks like."""
    if close := nearest(path.name, _beside(path)):
        return f"did you mean `{path.with_name(close)}`?"
    if (named := REPOSITORY.fullmatch(str(path))) and not path.parent.is_dir():
        return f"if it is on a hub, `hf download {named[1]} --local-dir {path.name}` fetches it; then name {path.name}"
    return "check the path"


def _beside(path: Path) -> list[str]:
    """The other names in a path's folder, where it can be listed."""
    try:
        return sorted({entry.name for entry in path.parent.iterdir()} - {path.name})
    except OSError:
        return []
