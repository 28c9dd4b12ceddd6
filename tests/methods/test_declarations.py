"""What `@method` refuses: each of these would otherwise fail in front of a user, or silently do something else."""

from collections.abc import Callable
from inspect import Parameter, Signature
from keyword import iskeyword
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor

from taskmerge.errors import UsageError
from taskmerge.methods.apply import apply
from taskmerge.methods.average import average
from taskmerge.methods.checks import check_result
from taskmerge.methods.contract import Laws, Method, Work, declaration, method
from taskmerge.methods.options import RESERVED, BadDeclaration, Option
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.selection import Scan
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Stack, Weights

WORDS: dict[str, Any] = {"title": "Mine", "formula": "θ = 0", "paper": "none"}
PLAIN: dict[str, Any] = {"space": "weight", "reads": "elements", **WORDS}
MATRICES: dict[str, Any] = {"space": "delta", "reads": "matrix", **WORDS}


def mine(stack: Stack, weights: Weights, *, size: Annotated[float, Option("a size", low=0)] = 0.5) -> Tensor:
    """Fine as it is."""
    return stack[0] * size


def on_matrices(matrices: TaskMatrices) -> Tensor:
    return matrices.stack[0]


def with_option(hint: Any, default: Any, option: Option | None = None, name: str = "size") -> Callable[..., Tensor]:
    """A kernel with one option of this type and default."""

    def kernel(stack: Stack, **options: Any) -> Tensor:
        return stack[0]

    parameters = [
        Parameter("stack", Parameter.POSITIONAL_ONLY),
        Parameter(name, Parameter.KEYWORD_ONLY, default=default),
    ]
    kernel.__signature__ = Signature(parameters)
    kernel.__annotations__ = {name: Annotated[hint, option or Option("a size")]}
    return kernel


def test_a_declared_function_comes_back_as_it_was() -> None:
    def plain(stack: Stack) -> Tensor:
        return stack[0]

    assert method(**PLAIN)(plain) is plain
    assert declaration(plain).name == "plain"
    with pytest.raises(TypeError, match="not declared with @method"):
        declaration(lambda stack: stack)


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (float, 0.5), (float, 1), (float | None, 0.5), (int, 3), (bool, True), (Rank, Rank("count", 3)),
        (Literal["a", "b"], "a"), (Literal["a"] | None, "a"),
    ],
)  # fmt: skip
def test_options_that_are_served(hint: Any, default: Any) -> None:
    settings = declaration(method(**PLAIN)(with_option(hint, default))).settings
    assert settings["size"].default == default


@pytest.mark.parametrize(
    ("hint", "default", "option", "says"),
    [
        (str, "a", None, "an option is float, int, bool, Rank or a Literal of texts"),
        (list[float], 0.5, None, "not list"),
        (Literal[1, 2], 1, None, "a Literal of texts"),
        (int | float, 1, None, "an option is float"),
        (Tensor, 0.5, None, "an option is float"),
        (float, 2.0, Option("a share", high=1), r"the default 2.0 is outside of what it allows \(number ..1\)"),
        (float, float("nan"), None, "the default nan is outside"),
        (int, 0.5, None, "the default 0.5 is outside of what it allows"),
        (bool, "yes", None, "the default 'yes' is outside"),
        (Rank, "0.08", None, "the default '0.08' is outside"),
        (Literal["a", "b"], "c", None, r"the default 'c' is outside of what it allows \(a | b\)"),
        (float | None, None, None, "a default of None needs `auto`"),
        (float, 0.5, Option("a share", low=1, high=0), r"its range 1..0 is empty"),
        (bool, True, Option("a switch", low=0), "only numbers have a range"),
        (float, 0.5, Option("a share", usual=lambda options, tasks: 0.5), "the default is None then"),
    ],
)
def test_options_that_are_not_served(hint: Any, default: Any, option: Option | None, says: str) -> None:
    with pytest.raises(BadDeclaration, match=f"`kernel`, parameter `size`: .*{says}"):
        method(**PLAIN)(with_option(hint, default, option))


@pytest.mark.parametrize("name", sorted(name for name in RESERVED if not iskeyword(name)))
def test_an_option_takes_no_name_of_the_command(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(BadDeclaration, match=f"`kernel`, parameter `{name}`: `{flag}` is an option of the command"):
        method(**PLAIN)(with_option(float, 0.5, name=name))


@pytest.mark.parametrize("name", ["then_size", "lines_size", "position"])
def test_an_option_takes_no_name_that_means_something_else(name: str) -> None:
    with pytest.raises(BadDeclaration, match=f"parameter `{name}`"):
        method(**PLAIN)(with_option(float, 0.5, name=name))


def without_default(stack: Stack, *, size: Annotated[float, Option("a size")]) -> Tensor: ...
def nobody(stack: Stack, alpha: float = 0.5) -> Tensor: ...
def misspelt(stack: Stack, weight: Weights) -> Tensor: ...
def starred(stack: Stack, **more: Any) -> Tensor: ...
def many(*stack: Stack) -> Tensor: ...
def nothing() -> Tensor: ...
def misnamed(tensors: Stack) -> Tensor: ...
def by_place(stack: Stack, weights: Weights, /) -> Tensor: ...
def expecting(stack: Stack, statistic: float | None = None) -> Tensor: ...
def sharing(matrices: TaskMatrices, shared: float | None = None) -> Tensor: ...
def unreadable(stack: "Nowhere") -> Tensor: ...  # type: ignore[name-defined]  # what is tested
def Upper(stack: Stack) -> Tensor: ...  # noqa: N802  what is tested
def weighing(stack: Stack, weights: Weights) -> Tensor: ...


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (without_default, "`without_default`, parameter `size`: an option has a default"),
        (
            nobody,
            "`nobody`, parameter `alpha`: nobody hands it to the kernel: .* position, shared, statistic, ",
        ),
        (misspelt, "`misspelt`, parameter `weight`: nobody hands it to the kernel"),
        (starred, "`starred`, parameter `more`: nobody hands it to the kernel"),
        (many, "`many`: the kernel takes 1 by position"),
        (nothing, "`nothing`: with `reads='elements'` the first parameter is `stack`"),
        (misnamed, "`misnamed`, parameter `tensors`: with `reads='elements'` the first parameter is `stack`"),
        (on_matrices, "`on_matrices`, parameter `matrices`: with `reads='elements'` the first parameter is `stack`"),
        (by_place, "`by_place`, parameter `weights`: nobody hands it to the kernel"),
        (expecting, "`expecting`, parameter `statistic`: it goes with `statistic=` in the declaration"),
        (unreadable, "`unreadable`: its annotations cannot be read: .*Nowhere"),
        (Upper, "`Upper`: a method's name is of a-z, 0-9 and _"),
        (lambda stack: stack, "`<lambda>`: a method's name is of a-z"),
    ],
)
def test_kernels_that_are_not_served(kernel: Any, says: str) -> None:
    with pytest.raises(BadDeclaration, match=says):
        method(**PLAIN)(kernel)


def test_kernels_on_matrices_that_are_not_served() -> None:
    with pytest.raises(BadDeclaration, match="`mine`, parameter `stack`: with `reads='matrix'` the first parameter is"):
        method(**MATRICES)(mine)
    with pytest.raises(BadDeclaration, match="`sharing`, parameter `shared`: it goes with `shared=`"):
        method(**MATRICES)(sharing)
    with pytest.raises(BadDeclaration, match="parameter `shared`: it goes with `shared=`"):
        method(**MATRICES, shared=lambda matrices: 1)(on_matrices)


def sometimes(matrices: TaskMatrices, *, rank: Annotated[Rank | None, Option("a rank", auto="none")] = None) -> Tensor:
    return matrices.stack.sum(0)


def test_options_may_decide_whether_matrices_are_read() -> None:
    """Where they are not, `elsewhere` takes every tensor."""
    words = {**MATRICES, "reads": lambda options: "elements" if options["rank"] is None else "matrix"}
    declared = declaration(method(**words, elsewhere=average, internal=True)(sometimes))
    stack = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(apply(declared, stack).own, stack.sum(0) / 3)
    assert torch.equal(apply(declared, stack, options={"rank": 2}).own, stack.sum(0))
    assert declared.on_matrices
    assert declared.internal
    with pytest.raises(BadDeclaration, match="with `reads='elements'` the first parameter is `stack`"):
        method(**words)(sometimes)


def narrow(scan: Scan, *, density: float) -> float: ...
def scaled_average(stack: Stack, share: float) -> Tensor: ...
def by_depth(position: Any) -> float: ...
def by_size(position: Any, tasks: int, amount: float) -> float: ...


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"space": "weights"}, "`space` is one of weight, delta, centred, not `weights`"),
        ({"reads": "rows"}, "`reads` is one of elements, tensor, matrix, not `rows`"),
        ({"reads": lambda options: "rows"}, "`reads` is one of"),
        ({"reads": lambda options: options["scope"]}, "`reads` fails on the defaults: KeyError"),
        ({"gives": "vectors"}, "`gives` is merged or task_vectors"),
        ({"gives": "task_vectors"}, 'what gives task vectors has `space="delta"`'),
        ({"gives": "task_vectors", "space": "delta"}, "parameter `weights`: weights act where task vectors are merged"),
        ({"elsewhere": average}, '`elsewhere` and `shared` are for methods with `reads="matrix"`'),
        ({"shared": narrow}, '`elsewhere` and `shared` are for methods with `reads="matrix"`'),
        ({"statistic": narrow}, "parameter `statistic`: it goes with `statistic=` in the declaration"),
        ({"factor": by_depth}, '`factor` scales task vectors: it needs `space="delta"`'),
        ({"space": "delta", "factor": by_depth}, "`by_depth` takes 2 by position"),
        ({"space": "delta", "factor": by_size}, "parameter `amount`: nobody hands it to `by_size`"),
        ({"tasks": (0, None)}, "`tasks` is"),
        ({"tasks": (3, 2)}, "`tasks` is"),
        ({"aliases": ("Weighted Sum",)}, "a method's name is of a-z, 0-9 and _, not `Weighted Sum`"),
        ({"laws": Laws(equal_experts={"rank": 1})}, "`equal_experts` of its laws: unknown option of mine `rank`"),
        ({"laws": Laws(zero_task={"size": -1})}, "`zero_task` of its laws: -1 is out of range"),
        ({"work": Work(sweeps=-1)}, "`work` says numbers from 0 on"),
        ({"work": Work(passes=lambda options: options["rank"])}, "`work` fails on the defaults: KeyError"),
        ({"work": Work(matrix=lambda m, n, tasks, options: float("nan"))}, "`work` says numbers from 0 on"),
    ],
)
def test_declarations_that_are_not_served(declared: dict[str, Any], says: str) -> None:
    method(**PLAIN)(mine)
    with pytest.raises(BadDeclaration, match=f"`mine`.*{says}"):
        method(**{**PLAIN, **declared})(mine)


def test_helpers_are_handed_what_they_name() -> None:
    def needing(stack: Stack, statistic: float | None = None) -> Tensor: ...

    with pytest.raises(BadDeclaration, match="`needing`, parameter `density`: nobody hands it to `narrow`"):
        method(**PLAIN, statistic=narrow)(needing)
    with pytest.raises(BadDeclaration, match="`on_matrices`, parameter `share`: nobody hands it to `scaled_average`"):
        method(**MATRICES, elsewhere=scaled_average)(on_matrices)


# --- results ---------------------------------------------------------------------------------------------------

LIKE = torch.zeros(2, 3)


def declared_by(module: str) -> Method:
    def summed(stack: Stack) -> Tensor: ...

    summed.__module__ = module
    return declaration(method(**PLAIN)(summed))


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (torch.tensor(1.0), r"gives \[\] float32 where \[2, 3\] float32 is due"),
        (torch.zeros(1, 2, 3), r"gives \[1, 2, 3\] float32 where"),
        (torch.zeros(2, 3, dtype=torch.float64), r"gives \[2, 3\] float64 where \[2, 3\] float32 is due"),
        (torch.zeros(2, 3, dtype=torch.bool), r"gives \[2, 3\] bool where"),
        (None, "gives NoneType where a tensor is due"),
        (1.0, "gives float where a tensor is due"),
    ],
)
def test_results_of_another_form_are_refused(result: object, says: str) -> None:
    with pytest.raises(UsageError, match=f"the method `summed` {says}") as caught:
        check_result(declared_by("their_package.merging"), result, LIKE)
    assert caught.value.hint == "report it to the authors of the package `their_package`"
    with pytest.raises(UsageError) as caught:
        check_result(declared_by("taskmerge.methods.summed"), result, LIKE)
    assert caught.value.hint == "report it to the authors of taskmerge"


def test_results_of_the_right_form_are_handed_on() -> None:
    result = torch.ones(2, 3)
    assert check_result(declared_by("their_package"), result, LIKE) is result
