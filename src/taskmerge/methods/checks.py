"""What is refused of a method: a declaration that nobody could serve, and a result of another form than promised."""

import inspect
import math
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.methods.kernel import HANDED_IN, takes
from taskmerge.methods.options import BadDeclaration, bind
from taskmerge.types import Space

if TYPE_CHECKING:
    from taskmerge.methods.contract import Method

OURS = "taskmerge"
GRANULARITIES = ("elements", "tensor", "matrix")
PLAIN_NAME = re.compile("[a-z][a-z0-9_]*")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


# --- declarations ----------------------------------------------------------------------------------------------


def check_declaration(method: "Method") -> None:
    """Raises `BadDeclaration` for what engine, command line or docs could not serve."""
    _check_words(method)
    _check_reads(method)
    _check_kernel(method)
    _check_helpers(method)
    _check_laws(method)
    _check_work(method)


def _check_words(method: "Method") -> None:
    """Names that users can say, a space and a number of experts that exist."""
    for name in (method.name, *method.aliases):
        if not PLAIN_NAME.fullmatch(name):
            raise BadDeclaration(method.name, f"a method's name is of a-z, 0-9 and _, not `{name}`")
    if method.space not in get_args(Space):
        raise BadDeclaration(method.name, f"`space` is one of {', '.join(get_args(Space))}, not `{method.space}`")
    least, most = method.tasks
    if least < 1 or (most is not None and most < least):
        raise BadDeclaration(method.name, f"`tasks` is (fewest, most or None), not {method.tasks}")


def _check_reads(method: "Method") -> None:
    """What it reads exists, and fits what it gives."""
    try:
        reads = method.granularity(method.defaults())
    except Exception as error:
        raise BadDeclaration(method.name, f"`reads` fails on the defaults: {error!r}") from error
    if reads not in GRANULARITIES:
        raise BadDeclaration(method.name, f"`reads` is one of {', '.join(GRANULARITIES)}, not `{reads}`")
    if reads != "matrix" and not _sometimes_on_matrices(method) and (method.elsewhere or method.shared):
        raise BadDeclaration(method.name, '`elsewhere` and `shared` are for methods with `reads="matrix"`')
    if method.gives not in ("merged", "task_vectors"):
        raise BadDeclaration(method.name, f"`gives` is merged or task_vectors, not `{method.gives}`")
    if method.gives == "task_vectors" and (reads == "matrix" or method.space != "delta"):
        raise BadDeclaration(method.name, 'what gives task vectors has `space="delta"` and reads no matrices')
    if method.factor is not None and method.space != "delta":
        raise BadDeclaration(method.name, '`factor` scales task vectors: it needs `space="delta"`')


def _sometimes_on_matrices(method: "Method") -> bool:
    """Whether some options make it read matrices, and other options leave every tensor to `elsewhere`."""
    return callable(method.reads) and method.on_matrices and method.elsewhere is not None


def _check_kernel(method: "Method") -> None:
    """Somebody hands in every parameter, and everything that is made for the kernel is taken."""
    by_default = method.granularity(method.defaults()) == "matrix"
    first = "matrices" if by_default or _sometimes_on_matrices(method) else "stack"
    names = list(inspect.signature(method.kernel).parameters)
    if names[:1] != [first]:
        problem = f"with `reads={method.granularity(method.defaults())!r}` the first parameter is `{first}`"
        raise BadDeclaration(method.name, problem, names[0] if names else None)
    for name in HANDED_IN & method.settings.keys():
        raise BadDeclaration(method.name, "it is handed in, and cannot be an option", name)
    _check_parameters(method, method.kernel, 1, {*HANDED_IN, *method.settings}, strict=True)
    for name, takers in (("statistic", (method.kernel, method.elsewhere)), ("shared", (method.kernel,))):
        if any(takes(taker, name) for taker in takers if taker) != (getattr(method, name) is not None):
            raise BadDeclaration(method.name, f"it goes with `{name}=` in the declaration, and only with it", name)
    if method.gives == "task_vectors" and method.weighted:
        raise BadDeclaration(method.name, "weights act where task vectors are merged, not before", "weights")


def _check_helpers(method: "Method") -> None:
    """Somebody hands in what the functions beside the kernel need."""
    settings = set(method.settings)
    if method.elsewhere is not None:
        _check_parameters(method, method.elsewhere, 1, {*HANDED_IN - {"shared"}, *settings})
    if method.statistic is not None:
        _check_parameters(method, method.statistic, 1, {"weights", *settings})
    if method.shared is not None:
        _check_parameters(method, method.shared, 1, settings)
    if method.factor is not None:
        _check_parameters(method, method.factor, 2, settings)


def _check_parameters(
    method: "Method", function: Callable[..., Any], positional: int, by_name: Collection[str], *, strict: bool = False
) -> None:
    """The first parameters come by position, the others by name; `strict`: none beside `by_name`, default or not."""
    parameters = list(inspect.signature(function).parameters.values())
    whom = "the kernel" if function is method.kernel else f"`{getattr(function, '__name__', function)}`"
    if len([parameter for parameter in parameters[:positional] if parameter.kind in POSITIONAL]) < positional:
        raise BadDeclaration(method.name, f"{whom} takes {positional} by position")
    for parameter in parameters[positional:]:
        served = parameter.kind in BY_NAME and parameter.name in by_name
        if not served and (strict or parameter.default is parameter.empty):
            problem = f"nobody hands it to {whom}: it is neither an option nor one of {', '.join(sorted(HANDED_IN))}"
            raise BadDeclaration(method.name, problem, parameter.name)


def _check_laws(method: "Method") -> None:
    for name in ("equal_experts", "zero_task"):
        try:
            bind(method, getattr(method.laws, name) or {})
        except TaskmergeError as error:
            raise BadDeclaration(method.name, f"`{name}` of its laws: {error.what}") from error


def _check_work(method: "Method") -> None:
    """What it is said to take is a number."""
    try:
        defaults = method.defaults()
        found = (method.work.sweeps, method.first_passes(defaults), method.matrix_seconds(6, 4, 3, defaults))
    except Exception as error:
        raise BadDeclaration(method.name, f"`work` fails on the defaults: {error!r}") from error
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in found):
        raise BadDeclaration(method.name, f"`work` says numbers from 0 on, not {found}")


# --- results ---------------------------------------------------------------------------------------------------


def check_result(method: "Method", result: object, like: Tensor) -> Tensor:
    """A kernel's result, if it has the shape and dtype of `like`.

    Else a `UsageError`, with the name of the package if the method is a plug-in's: no file and no number is at
    fault, the command asked for a method that cannot be used. Without this check a result of one entry would be
    broadcast over the whole tensor.
    """
    if not isinstance(result, Tensor):
        form = f"{type(result).__name__} where a tensor is due"
    elif result.shape != like.shape or result.dtype != like.dtype:
        form = f"{_form(result)} where {_form(like)} is due"
    else:
        return result
    whose = "taskmerge" if method.package == OURS else f"the package `{method.package}`"
    raise UsageError(f"the method `{method.name}` gives {form}", hint=f"report it to the authors of {whose}")


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
