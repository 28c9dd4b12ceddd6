"""What experts say: their own outputs, whatever they are merged into; kept between runs, made again where damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, Assembled, assembled, clip_suite, doubles, text_suite
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from taskmerge.adaptation import opening
from taskmerge.adaptation.teachers import Teacher, TeacherCache
from taskmerge.data.items import Items
from taskmerge.errors import UsageError
from taskmerge.specs.suite import Suite


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return clip_suite(tmp_path / "suite")


def items(count: int = 6, fingerprint: str = "of these items") -> Items:
    return Items({"pixels": torch.zeros(count, 3, 4, 4, dtype=torch.uint8)}, fingerprint, torch.arange(count))


def made(count: int = 6) -> Teacher:
    generator = torch.Generator().manual_seed(count)
    return Teacher(torch.randn(count, 4, generator=generator), torch.randn(count, 5, generator=generator))


# --- what they are -----------------------------------------------------------------------------------------------


def said(found: Assembled, task: str, state: dict[str, Tensor]) -> Tensor:
    """Outputs of an encoder with these float64 weights, and the suite's head."""
    side = next(side for side in found.run.sides if side.name == task)
    opened = next(one for one in found.opened.tasks if one.task.name == task)
    with torch.no_grad():
        features = functional_call(found.module, state, (side.items.inputs,))
        outputs: Tensor = opened.head(features)
    return outputs


@pytest.mark.parametrize("options", [
    {}, {"exclude": ("visual.conv1.*",)}, {"origin": "mean"}, {"qkv": "split"}, {"method": "surgery"},
    {"method": "heads", "init": "cart"},
])  # fmt: skip
def test_a_teacher_is_the_expert_itself(suite: Suite, tmp_path: Path, options: dict[str, Any]) -> None:
    """All of it: also the tensors that are not merged."""
    found = assembled(suite, tmp_path / "out", **{"method": "adamerging", "compute_dtype": "float64", **options})
    for task in TASKS:
        wanted = said(found, task, doubles(suite.folder / f"{task}.safetensors"))
        torch.testing.assert_close(found.teachers[task].outputs, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"origin": "mean"}, {"method": "cart_plus"}, {"method": "surgery"}])
@pytest.mark.parametrize("scale", [0.8, 0.0, 1.5])
def test_a_scaled_teacher_lies_between_the_base_and_the_expert(
    suite: Suite, tmp_path: Path, options: dict[str, Any], scale: float
) -> None:
    """θ₀ + a τ_t, whatever the method's origin is."""
    plain = {"method": "symerge", "compute_dtype": "float64", "teacher_scale": scale}
    found = assembled(suite, tmp_path / "out", **{**plain, **options})
    base = doubles(suite.folder / "base.safetensors")
    for task in TASKS:
        expert = doubles(suite.folder / f"{task}.safetensors")
        wanted = said(found, task, {name: base[name] + scale * (expert[name] - base[name]) for name in base})
        torch.testing.assert_close(found.teachers[task].outputs, wanted, rtol=1e-10, atol=1e-10)


def test_without_a_base_there_is_nothing_to_scale_towards(suite: Suite, tmp_path: Path) -> None:
    alone = replace(suite, base=None)
    with pytest.raises(UsageError, match="there is no base") as error:
        assembled(alone, tmp_path / "out", method="cart_plus", teacher_scale=0.8)
    assert error.value.exit_code == 2
    assert "base:" in str(error.value.hint)
    assembled(alone, tmp_path / "out", method="cart_plus", overwrite=True)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_teachers_of_texts_have_their_own_classifier(tmp_path: Path, family: str) -> None:
    suite = text_suite(tmp_path / "suite", family)
    found = assembled(suite, tmp_path / "out", method="adamerging", compute_dtype="float64")
    wrapper = {"bert": "bert.", "gpt2": "transformer."}[family]
    for task in TASKS:
        state = doubles(suite.folder / f"{task}.safetensors")
        own = {name.removeprefix(wrapper): tensor for name, tensor in state.items() if name.startswith(wrapper)}
        wanted = said(found, task, {name: own[name] for name in own if not name.startswith("pooler")})
        torch.testing.assert_close(found.teachers[task].outputs, wanted, rtol=1e-10, atol=1e-10)


def test_the_encoder_starts_at_the_merge_after_all_experts_were_asked(suite: Suite, tmp_path: Path) -> None:
    found = assembled(suite, tmp_path / "out", method="adamerging", compute_dtype="float64")
    states = {name: doubles(suite.folder / f"{name}.safetensors") for name in ("base", *TASKS)}
    for name, tensor in found.live().items():
        base = states["base"][name]
        wanted = base + 0.3 * sum(states[task][name] - base for task in TASKS)
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)


def test_features_are_kept_where_they_are_compared_and_nowhere_else(suite: Suite, tmp_path: Path) -> None:
    plain = assembled(suite, tmp_path / "out", method="symerge")
    on_features = assembled(suite, tmp_path / "out", method="symerge", on="features", objective="l2")
    assert plain.teachers["cars"].features.numel() == 0
    assert on_features.teachers["cars"].features.shape == (20, 12)
    view = on_features.teachers["cars"].view(torch.tensor([3, 1, 3]), torch.device("cpu"))
    assert torch.equal(view.features, on_features.teachers["cars"].features[[3, 1, 3]])
    assert torch.equal(view.outputs, plain.teachers["cars"].outputs[[3, 1, 3]])


# --- the cache -------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    cache, calls = TeacherCache(tmp_path / "cache"), []

    def compute() -> Teacher:
        calls.append(1)
        return made()

    for _ in range(3):
        found = cache.teacher({"expert": "x"}, items(), compute)
        assert torch.equal(found.outputs, made().outputs)
        assert torch.equal(found.features, made().features)
    assert len(calls) == 1
    TeacherCache(None).teacher({"expert": "x"}, items(), compute)
    assert len(calls) == 2


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def of_others(file: Path) -> None:
    """A file of the same form that says another content."""
    save_file(load_file(file), file, {"content": "0" * 64})


def without_metadata(file: Path) -> None:
    save_file(load_file(file), file)


def of_another_number(file: Path) -> None:
    """As it was written, for fewer items."""
    own = TeacherCache(file.parent / "other")
    own.teacher({}, items(5), lambda: made(5))
    (other,) = (file.parent / "other").iterdir()
    other.replace(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [
    truncated, flipped, emptied, of_others, without_metadata, of_another_number, a_folder,
])  # fmt: skip
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = TeacherCache(tmp_path / "cache")
    cache.teacher({"expert": "x"}, items(), made)
    (file,) = (tmp_path / "cache").iterdir()
    damage(file)
    found = cache.teacher({"expert": "x"}, items(), made)
    assert torch.equal(found.outputs, made().outputs)
    assert torch.equal(found.features, made().features)


def test_where_nothing_can_be_kept_it_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    found = TeacherCache(tmp_path / "file" / "cache", told.append).teacher({}, items(), made)
    assert torch.equal(found.outputs, made().outputs)
    assert len(told) == 1
    assert "could not be kept" in told[0]


def asked(suite: Suite, tmp_path: Path, patch: pytest.MonkeyPatch, **options: Any) -> int:
    """How many experts were run for this run."""
    calls = []
    fill_expert = opening.fill_expert
    with patch.context() as inner:
        inner.setattr(opening, "fill_expert", lambda *given: calls.append(1) or fill_expert(*given))
        assembled(suite, tmp_path / "out", **{"method": "symerge", "cache": tmp_path / "cache", **options})
    return len(calls)


def test_what_makes_experts_be_asked_again(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another expert, head, scale, number of items, precision, or features besides; not what is learnt, nor how."""
    assert asked(suite, tmp_path, monkeypatch) == 3
    for same in ({}, {"method": "adarank"}, {"lr": 0.5, "updates": "joint"}, {"origin": "mean"}, {"tasks": TASKS[:2]}):
        assert asked(suite, tmp_path, monkeypatch, **same) == 0, same
    for other in (
        {"teacher_scale": 0.8},
        {"limit": 10},
        {"compute_dtype": "float64"},
        {"on": "features", "objective": "l2"},
    ):
        assert asked(suite, tmp_path, monkeypatch, **other) == 3, other
        assert asked(suite, tmp_path, monkeypatch, **other) == 0, other
    head = suite.folder / "head_cars.safetensors"
    save_file({"weight": 2 * load_file(head)["weight"]}, head)
    assert asked(suite, tmp_path, monkeypatch) == 1
    expert = suite.folder / "signs.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(expert).items()}, expert)
    assert asked(suite, tmp_path, monkeypatch) == 1
    assert asked(suite, tmp_path, monkeypatch) == 0


def test_another_base_matters_to_scaled_experts_alone(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({}, {"teacher_scale": 0.8}):
        assert asked(suite, tmp_path, monkeypatch, **options) == 3
    base = suite.folder / "base.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(base).items()}, base)
    assert asked(suite, tmp_path, monkeypatch) == 0
    assert asked(suite, tmp_path, monkeypatch, teacher_scale=0.8) == 3
