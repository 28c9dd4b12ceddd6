"""Which tensors can be merged: the comparison of headers, and the way out that it proposes."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.checkpoint.dtypes import itemsize
from taskmerge.errors import Mismatch, UsageError
from taskmerge.experts.compare import agree, common_prefix
from taskmerge.specs.merge import MergeSpec

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
NAMES = ["a.x", "a.y", "b.x", "b.y", "c"]


def source(task: str, tensors: Shapes | list[str]) -> Any:
    """An input that has only a header."""
    plain = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, ("F32", (2, 3)))
    specs = {
        name: SimpleNamespace(name=name, dtype=dtype, shape=shape, nbytes=itemsize(dtype) * 6)
        for name, (dtype, shape) in plain.items()
    }
    return SimpleNamespace(task=task, where=f"{task}.safetensors", specs=specs, kind="weight")


def test_equal_sets_agree() -> None:
    found = agree(MergeSpec(), None, [source("one", NAMES), source("two", NAMES[::-1])], False)
    assert found.names == tuple(sorted(NAMES))
    assert (found.heads, found.copied, found.left_out, found.notes) == ((), (), (), ())


@settings(max_examples=50)
@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=2, max_size=4), st.sets(st.sampled_from(NAMES)))
def test_every_tensor_is_accounted_for(sets: list[set[str]], base: set[str]) -> None:
    """Skip merges exactly the common tensors; unequal sets are refused; the base fills what it has."""
    experts = [source(f"task{index}", sorted(names)) for index, names in enumerate(sets)]
    union, common = set.union(*sets), set.intersection(*sets)
    origin = source("base", sorted(base))
    skipped = agree(MergeSpec(on_missing="skip"), origin, experts, False)
    assert set(skipped.names) == common
    if union == common:
        assert set(agree(MergeSpec(), origin, experts, False).names) == union
    else:
        with pytest.raises(Mismatch) as caught:
            agree(MergeSpec(), origin, experts, False)
        assert all(f"`{name}`" in str(caught.value) for name in union - common), "nothing is kept back"
    filled = all(name in base for name in union - common)
    try:
        found = agree(MergeSpec(on_missing="base"), origin, experts, False)
        assert filled
        assert set(found.names) == union
        assert set(found.copied) == base - union
    except Mismatch:
        assert not filled


def test_all_problems_are_in_one_message() -> None:
    one = source("one", {"a": ("F32", (2,)), "b": ("F32", (2,)), "n": ("I64", (1,))})
    two = source("two", {"a": ("F32", (3,)), "c": ("F32", (2,)), "n": ("I32", (1,))})
    base = source("base", {"a": ("F32", (2,))})
    with pytest.raises(Mismatch) as caught:
        agree(MergeSpec(), base, [one, two], True)
    text = str(caught.value)
    assert "one.safetensors: has 1 tensors that other experts lack: `b`" in text
    assert "two.safetensors: has 1 tensors that other experts lack: `c`" in text
    assert "`a`: F32 [2] in base.safetensors, one.safetensors; F32 [3] in two.safetensors" in text
    assert "`n`: I64 [1] in one.safetensors; I32 [1] in two.safetensors" in text
    assert "base.safetensors: the base lacks 3 tensors that experts have: `b`, `c`, `n`" in text


def test_float_types_may_differ_but_integer_types_may_not() -> None:
    one, two = source("one", {"a": ("F16", (2,))}), source("two", {"a": ("BF16", (2,))})
    assert agree(MergeSpec(), None, [one, two], False).names == ("a",)


def test_on_missing_base_without_a_base() -> None:
    with pytest.raises(UsageError, match="--on-missing base needs a base"):
        agree(MergeSpec(on_missing="base"), None, [source("one", NAMES)], False)


@pytest.mark.parametrize(
    ("experts", "base", "expected"),
    [
        ([["a.x"], ["a.x"]], None, ""),
        ([["m.a.x", "m.b"], ["a.x", "b"]], None, "m."),
        ([["m.v.a.x", "m.v.b"], ["a.x", "b"]], None, "m.v."),
        ([["m.a", "m.b"], ["m.a", "m.b"]], ["a", "b", "c"], "m."),
        ([["a", "b"], ["a", "b"]], ["m.a", "m.b", "m.c"], "m."),
        ([["a", "b"], ["a", "b"]], ["m.a", "n.b"], ""),
        ([["m.a", "m.b"], ["a", "c"]], None, ""),
        ([["m.a", "a"], ["a", "b"]], None, ""),
        ([["m.a", "m.b"], ["a", "b"]], ["v.a", "v.b"], ""),
    ],
)
def test_one_prefix_that_mends_everything(experts: list[list[str]], base: list[str] | None, expected: str) -> None:
    assert common_prefix(experts, base) == expected


def test_heads_are_what_differs_in_shape_or_is_not_in_a_base_that_is_read() -> None:
    shared = {"a": ("F32", (2, 3))}
    one = source("one", {**shared, "head": ("F32", (4, 3)), "dense": ("F32", (3, 3))})
    two = source("two", {**shared, "head": ("F32", (5, 3)), "dense": ("F32", (3, 3))})
    base = source("base", {**shared, "text": ("F32", (1,))})
    keep = MergeSpec(heads="keep")
    assert agree(keep, base, [one, two], True).heads == ("dense", "head")
    assert agree(keep, base, [one, two], False).heads == ("head",)
    assert agree(keep, None, [one, two], False).names == ("a", "dense")


def differing(odd: list[str], same: list[str]) -> str:
    """What is said of two experts whose tensors `odd` differ in shape."""
    first = source("first", dict.fromkeys((*odd, *same), ("F32", (2, 3))))
    second = source("second", {**dict.fromkeys(odd, ("F32", (2, 4))), **dict.fromkeys(same, ("F32", (2, 3)))})
    with pytest.raises(Mismatch) as raised:
        agree(MergeSpec(), None, [first, second], False)
    return raised.value.message


def test_few_tensors_are_left_out_by_name() -> None:
    assert "--exclude 'a' --exclude 'b'" in differing(["b", "a"], [f"c{n}" for n in range(9)])


def test_many_tensors_are_left_out_by_globs_that_match_no_other() -> None:
    odd = [f"layers.{n}.router.weight" for n in range(40)]
    same = [f"layers.{n}.{part}.weight" for n in range(40) for part in ("q", "k", "v")]
    assert "--exclude 'layers.*.router.weight'" in differing(odd, same)
    assert differing(odd, same).count("--exclude") == 1
    beside = [*same, "layers.40.router.weight"]  # the glob would take it too
    assert "leave these 40 tensors out with `--exclude GLOB`" in differing(odd, beside)


@pytest.mark.parametrize("count", [100, 5000])
def test_models_of_different_width_are_no_list_of_names(count: int) -> None:
    message = differing([f"layers.{n}.fc.weight" for n in range(count)], ["norm"])
    assert f"{count:,} of {count + 1:,} tensors differ: are these fine-tunings of one model?" in message
    assert len(message) < 3000
