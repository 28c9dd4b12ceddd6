"""Inputs in different dialects merge to the bytes of the same model in one, under the names of the first."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import taskmerge
from dialect_cases import State, before_4_52, mixtral, model, one_by_one, renamed, spoken
from taskmerge.errors import Mismatch, UsageError
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.request import requested

TASKS = ("a", "b", "c")


def written(folder: Path, states: dict[str, State]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in states}


def merged(
    folder: Path, states: dict[str, State], method: str, **options: object
) -> tuple[State, taskmerge.MergeReceipt]:
    """The result over `base`, if there is one among the states, and the receipt."""
    paths = written(folder, states)
    base = paths.pop("base", None)
    receipt = taskmerge.merge(
        paths, base=base, method=method, output=folder / "out.safetensors", overwrite=True, **options
    )
    return load_file(folder / "out.safetensors"), receipt


def same_bytes(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name].view(-1), wanted[name].view(-1)) for name in wanted
    )


@settings(max_examples=10, deadline=None)
@given(
    words=st.tuples(*[st.integers(0, 10_000)] * 4),
    method=st.sampled_from(["average", "task_arithmetic", "ties", "cart"]),
)
def test_the_same_bytes_in_any_dialect(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[int, ...], method: str
) -> None:
    """Base and three experts in words of their own: as if all spoke as the base does."""
    tmp = tmp_path_factory.mktemp("words")
    names = ("base", *TASKS)
    plain = {name: model(seed) for seed, name in enumerate(names)}
    alike = {name: spoken(state, words[0]) for name, state in plain.items()}
    mixed = {name: spoken(plain[name], seed) for name, seed in zip(names, words, strict=True)}
    wanted, _ = merged(tmp / "alike", alike, method)
    found, receipt = merged(tmp / "mixed", mixed, method)
    assert same_bytes(found, wanted)
    others = [name for name in TASKS if set(mixed[name]) != set(mixed["base"])]
    told = [note for note in receipt.notes if "read under other names" in note]
    assert [Path(note.split(":")[0]).stem for note in told] == others, "every translation is told, and nothing else"


@settings(max_examples=5, deadline=None)
@given(words=st.tuples(*[st.integers(1, 10_000)] * 3))
def test_without_a_base_the_first_expert_s_words_are_written(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[int, ...]
) -> None:
    tmp = tmp_path_factory.mktemp("words")
    plain = {name: model(seed) for seed, name in enumerate(TASKS)}
    mixed = {name: spoken(plain[name], seed) for name, seed in zip(TASKS, words, strict=True)}
    wanted, _ = merged(tmp / "alike", {name: spoken(state, words[0]) for name, state in plain.items()}, "cart")
    assert same_bytes(merged(tmp / "mixed", mixed, "cart")[0], wanted)


@settings(max_examples=8, deadline=None)
@given(words=st.tuples(*[st.integers(0, 10_000)] * 3), read=st.booleans())
def test_a_merge_of_dialects_is_verified_and_replayed(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[int, ...], read: bool
) -> None:
    """Also where the base that gave the words is not read, and so not in the record."""
    tmp = tmp_path_factory.mktemp("words")
    mixed = {name: spoken(model(n), seed) for n, (name, seed) in enumerate(zip(("base", "a", "b"), words, strict=True))}
    merged(tmp, mixed, "task_arithmetic" if read else "average")
    out = tmp / "out.safetensors"
    assert taskmerge.verify(out, [tmp]).same_file
    request = requested([tmp], {"output": tmp / "again.safetensors"}, recipe=out)
    merge_requested(request)
    assert (tmp / "again.safetensors").read_bytes() == out.read_bytes()


def test_digests_are_of_whole_stored_tensors(tmp_path: Path) -> None:
    """An expert's content has one digest in whatever words it is read."""
    states = {"a": model(1), "b": one_by_one(model(2))}
    _, both = merged(tmp_path / "one", states, "average")
    _, turned = merged(tmp_path / "two", {"a": states["b"], "b": states["a"]}, "average")
    first, second = (record.provenance["tasks"] for record in (both, turned))
    assert [entry["digest"] for entry in first] == [entry["digest"] for entry in second][::-1]
    assert not any("partial" in entry for entry in (*first, *second))


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4"])
def test_stacks_that_lie_otherwise_are_not_taken_apart(tmp_path: Path, kind: str) -> None:
    folders = {}
    for name, state in {"a": model(0), "b": one_by_one(model(1))}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        save_file(state, folders[name] / "model.safetensors")
        (folders[name] / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(Mismatch) as caught:
        taskmerge.merge(folders, method="average", output=tmp_path / "out.safetensors")
    assert "--exclude" not in (caught.value.hint or "")


def test_heads_of_experts_go_by_the_base_s_words(tmp_path: Path) -> None:
    """What the base lacks is called as the base would call it."""
    base = before_4_52(model(0))
    state = model(1) | {"model.language_model.layers.0.adapter.weight": torch.ones(2, 2)}
    found, _ = merged(tmp_path, {"base": base, "a": state, "b": state}, "average")
    assert "language_model.model.layers.0.adapter.weight" in found


def test_skipping_drops_nothing_that_another_name_would_match(tmp_path: Path) -> None:
    other = mixtral(before_4_52(model(1)))
    found, receipt = merged(tmp_path, {"a": model(0), "b": other}, "average", on_missing="skip")
    assert found.keys() == model(0).keys()
    assert not any("left out" in note for note in receipt.notes)
    strange = renamed(model(1), lambda name: name.replace("self_attn", "attention"))
    with pytest.raises(Mismatch, match="under other names") as caught:
        merged(tmp_path, {"a": model(0), "b": strange}, "average", on_missing="skip")
    assert "--map '*.attention.* = *.self_attn.*'" in caught.value.message


# --- --map -------------------------------------------------------------------------------------------------------

STRANGE = {
    "a prefix": (lambda name: f"net.{name}", "net.* = *"),
    "a segment": (lambda name: name.replace("self_attn", "attention"), "*.attention.* = *.self_attn.*"),
    "an ending": (lambda name: name.replace("q_proj.weight", "q_proj.w"), "*.w = *.weight"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_where_no_map_is_known_the_hint_names_the_renaming_that_helps(tmp_path: Path, case: str) -> None:
    rename, said = STRANGE[case]
    states = {"a": model(0), "b": model(1), "c": renamed(model(2), rename)}
    wanted, _ = merged(tmp_path, {**states, "c": model(2)}, "average")
    with pytest.raises(Mismatch) as caught:
        merged(tmp_path, states, "average")
    assert caught.value.exit_code == 4
    assert "--exclude" not in (caught.value.hint or "")
    if case != "a prefix":  # for which there is a shorter word
        assert f"--map '{said}'" in (caught.value.hint or "")
    assert same_bytes(merged(tmp_path, states, "average", map=[said])[0], wanted)
    assert taskmerge.verify(tmp_path / "out.safetensors", [tmp_path]).same_file


@pytest.mark.parametrize("text", ["a", "a = ", " = b", "a* = b", "a = b*", "a = b = c"])
def test_a_renaming_that_says_nothing_is_wrong_usage(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"--map"):
        merged(tmp_path, {"a": model(0), "b": model(1)}, "average", map=text)


def test_a_renaming_that_no_name_matches_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tensor is called `lm_haed\.weight`") as caught:
        merged(tmp_path, {"a": model(0), "b": model(1)}, "average", map="lm_haed.weight = head.weight")
    assert caught.value.hint == "is it `lm_head.weight`?"


def test_two_tensors_that_get_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="two tensors have one name"):
        merged(tmp_path, {"a": model(0), "b": model(1)}, "average", map="*.q_proj.weight = *.k_proj.weight")


# --- diff --------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(words=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)))
def test_two_dialects_of_one_model_do_not_differ(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[int, int]
) -> None:
    paths = written(
        tmp_path_factory.mktemp("diff"), {n: spoken(model(0), seed) for n, seed in zip("ab", words, strict=True)}
    )
    report = taskmerge.diff(paths["a"], paths["b"])
    assert (report.changed, report.only_a, report.only_b, report.norm_difference) == ((), (), (), 0)
    assert bool(report.notes) == (load_file(paths["a"]).keys() != load_file(paths["b"]).keys())


def test_diff_takes_renamings(tmp_path: Path) -> None:
    paths = written(tmp_path, {"a": model(0), "b": renamed(model(0), STRANGE["a segment"][0])})
    assert not taskmerge.diff(paths["a"], paths["b"]).same
    assert taskmerge.diff(paths["a"], paths["b"], map=[STRANGE["a segment"][1]]).same


def test_codes_with_scales_are_put_together_too(tmp_path: Path) -> None:
    """Experts of FP8, one by one, over a base of stacks: as the values that codes and scales stand for."""
    apart, values, codes = one_by_one(model(1)), {}, {}
    for name, value in apart.items():
        if ".experts." not in name:
            values[name] = codes[name] = value
            continue
        codes[name] = value.to(torch.float8_e4m3fn)
        codes[f"{name}_scale_inv"] = torch.tensor([[0.5]])
        values[name] = codes[name].float() * 0.5
    wanted, _ = merged(tmp_path / "plain", {"base": model(0), "a": values}, "average", dtype="float32")
    found, _ = merged(tmp_path / "codes", {"base": model(0), "a": codes}, "average", dtype="float32")
    assert same_bytes(found, wanted)
    assert taskmerge.verify(tmp_path / "codes" / "out.safetensors", [tmp_path / "codes"]).same_file
