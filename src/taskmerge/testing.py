"""For those who write methods: `check_laws(my_method)` holds one to the laws that every merging method obeys.

The tests of this project run the same laws over all of its methods. Needs hypothesis, which users of taskmerge don't.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskmerge.methods.apply import apply, handed, kernel_on, task_names
from taskmerge.methods.contract import Method, declaration
from taskmerge.methods.kernel import Kernel
from taskmerge.methods.options import Setting, bind, settled
from taskmerge.numerics.rank import Rank

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Shape = tuple[int, ...]
Law = Callable[[Method], None]

EXAMPLES = 25
SHAPES: tuple[Shape, ...] = (
    (), (1,), (5,), (0,), (1, 1), (1, 4), (4, 1), (6, 5), (5, 6), (2, 0), (2, 3, 2, 2),
)  # fmt: skip
FEW: tuple[Shape, ...] = ((), (5,), (6, 5), (5, 7), (2, 3, 2, 2))
KINDS = ("normal", "zeros", "equal", "opposed", "quarters", "one entry", "rank one")
MANY = 15
"""Tasks from which on methods may take other numbers."""
RANKS = ("1", "1.0", "0.001", "energy:0.5", "energy:1.0", "999")


# --- laws ------------------------------------------------------------------------------------------------------


def check_laws(method: Kernel | Method) -> None:
    """Holds a method to every law that fits it; an error's note names the law that it breaks."""
    if find_spec("hypothesis") is None:
        raise ImportError("check_laws needs hypothesis: `pip install hypothesis`")
    declared = method if isinstance(method, Method) else declaration(method)
    for law in laws_of(declared):
        try:
            law(declared)
        except Exception as error:
            error.add_note(f"`{declared.name}` breaks the law `{law.__name__}`: {law.__doc__}")
            raise


def laws_of(method: Method) -> tuple[Law, ...]:
    """The laws that a method is held to: those of every method, and what its own `laws` promise."""
    return tuple(law for law, fits in LAWS.items() if fits(method))


def can_be_read(method: Method) -> None:
    """The declaration says what people need to know, in one line each."""
    _hold(method.summary.endswith("."), "the docstring's first line is a sentence, with a full stop")
    _hold(bool(method.title) and bool(method.paper), "there is a title and a paper")
    _hold(method.formula.startswith(("θ = ", "τ̃_t = ")), "the formula says what `θ = …` is")
    lines = (method.title, method.formula, *method.notes, *method.note_for.values())
    _hold(not any("\n" in line for line in lines), "title, formula and notes are one line each")
    _hold(not any(note.endswith(".") for note in method.notes), "notes have no full stop")
    for setting in method.settings.values():
        _hold(bool(setting.option.help), f"{setting.flag} says what it means")


def gives_the_same_twice(method: Method) -> None:
    """The same input gives the same bits: no other randomness than `uniform`, and no memory."""
    experts = _normal((_tasks(method), 6, 5), 7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = apply(method, experts).own
        torch.manual_seed(2)
        _hold(torch.equal(apply(method, experts).own, first), "a second call gives the same bits")


def keeps_shape_and_dtype(method: Method) -> None:
    """Shape and dtype are kept, and what is finite stays so: scalars, one entry, no entry, matrices, 4-D."""
    for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.float64)):
        result = apply(method, _normal((_tasks(method), *shape), 0, dtype), _normal(shape, 1, dtype))
        _hold(bool(torch.isfinite(result.merged).all()), f"the result on {list(shape)} {dtype} is finite")


def stays_finite(method: Method) -> None:
    """Finite experts give a finite result: zeros, equal and opposed experts, ties, one entry, rank one, any size."""
    from hypothesis import strategies as st

    def holds(tasks: int, shape: Shape, size: float, seed: int, kind: str) -> None:
        experts = _degenerate(_tasks(method, tasks), shape, size, seed, kind)
        _hold(bool(torch.isfinite(apply(method, experts).merged).all()), "the result is finite")

    sizes = st.sampled_from([1e-30, 1e-8, 1.0, 1e8])
    _for_all(holds, st.integers(1, 5), st.sampled_from(SHAPES), sizes, st.integers(0, 9), st.sampled_from(KINDS))


def works_at_the_ends_of_ranges(method: Method) -> None:
    """Both ends of every option's range, and all of its choices, give finite results."""
    for name, setting in method.settings.items():
        for value, shape in itertools.product(_extremes(setting), ((), (3,), (6, 5), (1, 4), (2, 3, 2, 2))):
            merged = apply(method, _normal((_tasks(method), *shape), 3), options={name: value}).merged
            _hold(bool(torch.isfinite(merged).all()), f"with {setting.flag} {value} the result on {shape} is finite")


def says_what_runs(method: Method) -> None:
    """Where an option is not given, the value that `usual` works out for it gives the same bits."""
    choices = {name: own.type for name, own in method.settings.items() if isinstance(own.type, tuple)}
    for values, count in itertools.product(itertools.product(*choices.values()), (2, 3, MANY)):
        options = dict(zip(choices, values, strict=True))
        experts, base = _normal((_tasks(method, count), 6, 5), 8), _normal((6, 5), 9)
        runs = settled(method, bind(method, options), len(experts))
        unsaid, said = (apply(method, experts, base, options=own).own for own in (options, runs))
        _hold(torch.equal(unsaid, said), f"{options} on {len(experts)} tasks is {runs}")


def is_near_itself_in_float64(method: Method) -> None:
    """float32 loses no more than its own rounding."""
    for shape in ((40,), (12, 9), (9, 12), (3, 4, 2, 2)):
        experts, base = _normal((_tasks(method, 4), *shape), 5), _normal(shape, 6)
        _close(apply(method, experts, base).merged, apply(method, experts.double(), base.double()).merged, 2e-5)


def is_symmetric(method: Method) -> None:
    """The order of the experts is irrelevant (`symmetric`)."""
    from hypothesis import strategies as st

    count = _tasks(method, 4)
    weights, tasks = torch.tensor([1.0, 0.5, 2.0, 1.5, 3.0], dtype=torch.float64)[:count], task_names(count)

    def holds(seed: int, order: list[int], shape: Shape) -> None:
        experts = _normal((count, *shape), seed, torch.float64)
        own = apply(method, experts, weights=weights, tasks=tasks).own
        moved = apply(method, experts[order], weights=weights[order], tasks=[tasks[index] for index in order]).own
        expected = own[order] if method.gives == "task_vectors" else own
        _close(moved, expected, 1e-9, size=float(experts.abs().max()))

    _for_all(holds, st.integers(0, 50), st.permutations(range(count)), st.sampled_from(FEW))


def works_element_by_element(method: Method) -> None:
    """Slices and shapes change no bit, for engine and threads cut as they like."""
    from hypothesis import strategies as st

    def holds(seed: int, cuts: list[int], dtype: torch.dtype) -> None:
        stack = _normal((_tasks(method), 60), seed, dtype)
        weights = torch.ones(len(stack), dtype=torch.float64)
        given = handed(method, stack, weights, task_names(len(stack)))
        whole = kernel_on(method, stack, given)
        parts = [
            kernel_on(method, stack[:, a:b], {**given, "uniform": lambda a=a, b=b: given["uniform"]()[:, a:b]})
            for a, b in itertools.pairwise([0, *sorted(cuts), 60])
        ]
        _hold(torch.equal(torch.cat(parts, dim=-1), whole), "slices give the bits of the whole")
        folded = (len(stack), 3, 4, 5)
        shaped = {**given, "uniform": lambda: given["uniform"]().view(folded)}
        same = torch.equal(kernel_on(method, stack.view(folded), shaped).reshape(whole.shape), whole)
        _hold(same, "another shape gives the same bits")

    dtypes = st.sampled_from([torch.float32, torch.float64])
    _for_all(holds, st.integers(0, 50), st.lists(st.integers(0, 60), max_size=5), dtypes)


def treats_every_task_by_itself(method: Method) -> None:
    """What gives task vectors makes each of its own row alone."""
    for seed, shape in enumerate(FEW):
        stack, tasks = _normal((3, *shape), seed), task_names(3)
        together = apply(method, stack, tasks=tasks).own
        for index in range(3):
            alone = apply(method, stack[index : index + 1], tasks=tasks[index : index + 1]).own
            _hold(torch.equal(alone[0], together[index]), "a task alone gives the same bits")


def is_homogeneous(method: Method) -> None:
    """Scaled rows give a result that is scaled as much (`homogeneous`)."""
    from hypothesis import strategies as st

    def holds(seed: int, scale: float, shape: Shape) -> None:
        experts = _normal((_tasks(method), *shape), seed, torch.float64)
        own = apply(method, experts).own
        _close(apply(method, experts * scale).own, scale * own, 1e-9, size=float(experts.abs().max()))

    _for_all(holds, st.integers(0, 50), st.sampled_from([0.25, 4.0]), st.sampled_from(FEW))


def commutes_with_shifts(method: Method) -> None:
    """What needs no base does not depend on where zero is (`shifts`)."""
    experts, shift = _normal((_tasks(method), 6, 5), 0, torch.float64), _normal((6, 5), 1, torch.float64)
    _close(apply(method, experts + shift).merged, apply(method, experts).merged + shift, 1e-9)


def gives_equal_experts_back(method: Method) -> None:
    """Equal experts give that expert, under the options of `equal_experts`."""
    from hypothesis import strategies as st

    def holds(seed: int, shape: Shape) -> None:
        expert, base = _normal(shape, seed), _normal(shape, seed + 100)
        size = float(torch.stack([expert, base]).abs().max())  # the base goes off and on again, and rounds
        merged = apply(method, torch.stack([expert] * _tasks(method)), base, options=method.laws.equal_experts).merged
        _close(merged, expert, 2e-6, size)

    _for_all(holds, st.integers(0, 50), st.sampled_from(FEW))


def ignores_an_unmoved_expert(method: Method) -> None:
    """One more expert that equals the base changes nothing, under the options of `zero_task`."""
    from hypothesis import strategies as st

    def holds(seed: int) -> None:
        experts, base = _normal((3, 6, 5), seed, torch.float64), _normal((6, 5), seed + 100, torch.float64)
        more, options = torch.cat([experts, base[None]]), method.laws.zero_task
        merged = apply(method, experts, base, options=options).merged
        _close(apply(method, more, base, options=options).merged, merged, 1e-9)

    _for_all(holds, st.integers(0, 50))


def commutes_with_transposition(method: Method) -> None:
    """Transposed matrices give the transposed result (`transposes`)."""
    from hypothesis import strategies as st

    def holds(seed: int, shape: Shape) -> None:
        experts = _normal((_tasks(method), *shape), seed, torch.float64)
        _close(apply(method, experts.mT.contiguous()).merged, apply(method, experts).merged.mT, 1e-7)

    _for_all(holds, st.integers(0, 50), st.sampled_from([(6, 5), (5, 6), (4, 4), (1, 5)]))


def ignores_an_expert_of_weight_zero(method: Method) -> None:
    """What an expert of weight zero holds is irrelevant (`absent_at_zero`)."""
    experts, base = _normal((_tasks(method), 6, 5), 2, torch.float64), _normal((6, 5), 3, torch.float64)
    weights = torch.ones(len(experts), dtype=torch.float64)
    weights[-1] = 0
    moved = experts.clone()
    moved[-1] += 1.0
    merged = apply(method, experts, base, weights=weights).merged
    _close(apply(method, moved, base, weights=weights).merged, merged, 1e-9)


def _reads(method: Method) -> str:
    return method.granularity(method.defaults())


LAWS: Mapping[Law, Callable[[Method], bool]] = {
    can_be_read: lambda method: True,
    gives_the_same_twice: lambda method: True,
    keeps_shape_and_dtype: lambda method: True,
    stays_finite: lambda method: True,
    works_at_the_ends_of_ranges: lambda method: bool(method.settings),
    says_what_runs: lambda method: any(own.option.usual for own in method.settings.values()),
    is_near_itself_in_float64: lambda method: True,
    is_symmetric: lambda method: method.laws.symmetric and method.tasks != (1, 1),
    works_element_by_element: lambda method: _reads(method) == "elements",
    treats_every_task_by_itself: lambda method: method.gives == "task_vectors",
    is_homogeneous: lambda method: method.laws.homogeneous,
    commutes_with_shifts: lambda method: method.laws.shifts and not method.needs_base,
    gives_equal_experts_back: lambda method: method.laws.equal_experts is not None,
    ignores_an_unmoved_expert: lambda method: method.laws.zero_task is not None,
    commutes_with_transposition: lambda method: method.laws.transposes and _reads(method) == "matrix",
    ignores_an_expert_of_weight_zero: lambda method: method.laws.absent_at_zero and method.weighted,
}
"""Every law, and which methods it fits."""


# --- what laws are made of -------------------------------------------------------------------------------------


def _for_all(law: Callable[..., None], *strategies: "SearchStrategy[Any]") -> None:
    """Tries a law on examples that hypothesis draws, and shrinks the first that breaks it."""
    from hypothesis import given, settings

    settings(max_examples=EXAMPLES, deadline=None)(given(*strategies)(law))()


def _hold(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(f"not so: {text}")


def _close(result: Tensor, expected: Tensor, tolerance: float, size: float | None = None) -> None:
    """Equal up to a share of the largest expected magnitude, or of `size`."""
    if size is None:
        size = float(expected.abs().max()) if expected.numel() else 1.0
    worst = float((result.double() - expected.double()).abs().max()) if result.numel() else 0.0
    _hold(worst <= tolerance * max(size, 1e-30), f"{worst:.3g} is at most {tolerance:g} of {size:.3g}")


def _tasks(method: Method, wanted: int = 3) -> int:
    """The wanted number of experts, within what the method takes."""
    least, most = method.tasks
    return max(least, min(wanted, most or wanted))


def _normal(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _degenerate(tasks: int, shape: Shape, size: float, seed: int, kind: str) -> Tensor:
    """Experts in which something is zero, equal, opposed, tied or of low rank."""
    stack = _normal((tasks, *shape), seed)
    if kind == "zeros":
        stack.zero_()
    elif kind == "equal":
        stack[1:] = stack[0]
    elif kind == "opposed":
        stack[1::2] = -stack[0]
    elif kind == "quarters":
        stack = (stack * 4).round() / 4
    elif kind == "one entry":
        stack.view(-1)[1:] = 0
    elif kind == "rank one" and len(shape) == 2:
        stack = stack[:, :, :1] * stack[:, :1, :]
    return stack * size


def _extremes(setting: Setting) -> Sequence[object]:
    """Both ends of an option's range, or all its choices."""
    if isinstance(setting.type, tuple):
        return setting.type
    if setting.type is Rank:
        return RANKS
    if setting.type is bool:
        return (False, True)
    return [end for end in (setting.option.low, setting.option.high) if end is not None]
