"""`taskmerge doctor`: what it finds is what a merge does, what it proposes runs, and how it prints."""

import json
import random
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from doctor_cases import TROUBLES, World, a_file_that_was_cut, world
from merge_cases import Outcome, load, model, refused, run, save, tree, write_experts

import taskmerge
from dialect_cases import model as mixture
from dialect_cases import spoken
from fp8_cases import stored
from taskmerge.diagnosis.report import schema
from taskmerge.errors import TaskmergeError

Files = dict[str, Path]
Document = dict[str, Any]
CHECK = jsonschema.Draft202012Validator(schema())


def doctor(*arguments: object, code: int = 0) -> Outcome:
    """A diagnosis that must end with `code`, having printed its page and no error."""
    outcome = run("doctor", *arguments)
    assert outcome.code == code, outcome.out + outcome.err
    assert outcome.err == ""
    return outcome


def document(*arguments: object, code: int = 0) -> Document:
    found: Document = json.loads(doctor(*arguments, "--json", code=code).out)
    CHECK.validate(found)
    assert found["exit_code"] == code
    return found


def words(found: Document, level: str) -> str:
    return " ".join(
        f"{one['where']}: {one['what']} {one['hint']}" for one in found["findings"] if one["level"] == level
    )


def carried_out(found: Document) -> None:
    """Every proposed command goes through as it stands."""
    for one in found["commands"]:
        assert shlex.split(one["command"]) == one["arguments"]
        assert one["arguments"][:2] == ["taskmerge", "merge"]
        outcome = run(*one["arguments"][1:])
        assert outcome.code == 0, f"{one['command']}\n{outcome.err}"
        assert doctor(*experts_of(one["arguments"])).code == 0


def experts_of(arguments: list[str]) -> list[str]:
    """What a merge was told of its inputs, for `doctor`: without method and output."""
    given, left = arguments[2:-2], list[str]()
    while given:
        word = given.pop(0)
        if word in ("--method", "--qkv", "--also"):
            given.pop(0)
        else:
            left.append(word)
    return left


# --- whatever is wrong -----------------------------------------------------------------------------------------


def in_trouble(home: Path, seed: int) -> World:
    found, chance = world(home, seed), random.Random(seed)
    drawn = chance.sample(TROUBLES, chance.choice((1, 1, 2, 3)))
    for trouble in sorted(drawn, key=lambda one: one is a_file_that_was_cut):  # nothing else can change it then
        trouble(found)
    return found


def agrees_with_merge(home: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor says of any mixture of troubles against what merge does with the same inputs."""
    home.mkdir()
    monkeypatch.chdir(home)
    here = in_trouble(home, seed)
    before = tree(home)
    outcome = run("doctor", *here.arguments, "--json")
    assert tree(home) == before
    assert outcome.err == "", outcome.err
    found = json.loads(outcome.out)
    CHECK.validate(found)
    assert outcome.code == found["exit_code"]
    method = "task_arithmetic" if here.based else "cart"
    with_lora = [] if here.based or not here.more else here.more
    try:
        taskmerge.merge(
            [one for one in here.arguments if one not in ("--base", here.path("base").name)], method=method,
            base=here.path("base").name if here.based else None, output=home / "by-hand",
        )  # fmt: skip
        error = None
    except TaskmergeError as stopped:
        error = stopped
    assert (outcome.code == 0) == (error is None), f"{found['findings']}\n{error}"
    if error is not None:
        said = [(one["what"], one["where"]) for one in found["findings"] if one["level"] == "refusal"]
        if error.exit_code != 7 and not any("NaN or infin" in what for what, _ in said) and not with_lora:
            assert (error.what, error.where) in said
        assert outcome.code == 3 or error.exit_code != 3
    carried_out(found)


@pytest.mark.parametrize("seed", range(12))
def test_it_says_what_merge_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    agrees_with_merge(tmp_path / "w", seed, monkeypatch)


@pytest.mark.slow
def test_it_says_what_merge_does_at_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(100, 500):
        try:
            agrees_with_merge(tmp_path / f"w{seed}", seed, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


# --- what is found ---------------------------------------------------------------------------------------------


def test_the_page(experts: Files, here: Path) -> None:
    before = tree(here)
    out = doctor("*.safetensors").out
    assert tree(here) == before
    lines = out.splitlines()
    assert lines[0] == "fits: a merge of these goes through (3 experts, base base.safetensors)"
    assert lines[1] == "3 like fine-tunings of the base (median cosine of 6 matrices)"
    rows = [line.split() for line in lines]
    assert ["base", "whole", "10", "785", "3.14", "kB", "F32"] in rows
    assert ["beside", "the", "base", "‖τ‖/‖θ₀‖", "cosine", "median"] in rows
    assert ["changed", "entries", "linear", "projection", "embedding", "vector", "scalar"] in rows
    assert ["dogs", "100%", "100%", "100%", "100%", "100%"] in rows
    assert "cosines of task vectors" in lines
    assert "note: base.safetensors is the base (its name is `base`)" in out
    assert out.count("\ntaskmerge merge --method ") == 2
    assert all(len(line) <= 80 for line in lines if not line.startswith("note:"))


@pytest.mark.parametrize("count", [2, 8, 9, 14])
def test_many_experts_with_long_names_fit_eighty_columns(here: Path, count: int) -> None:
    write_experts(here, *(f"an-expert-with-a-name-{place}-{'x' * 90}" for place in range(count)))
    lines = doctor("*.safetensors").out.splitlines()
    tables = lines[3 : next(place for place, line in enumerate(lines) if line.startswith("note:"))]
    assert all(len(line) <= 80 for line in tables)
    assert ("farthest" in " ".join(tables)) == (count > 8)


def test_on_a_terminal_words_are_folded_and_commands_are_not(
    experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmerge.cli import doctor_page

    piped = doctor("*.safetensors").out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    found, printed = taskmerge.doctor(["*.safetensors"]), list[str]()
    monkeypatch.setattr(doctor_page.show, "page", lambda lines: printed.extend(lines))
    doctor_page.show_page(found, quiet=False)
    assert all(len(line) <= 80 for line in printed)
    assert printed[-8:] == piped.splitlines()[-8:]


def test_quiet_is_one_line(experts: Files, here: Path) -> None:
    assert doctor("*.safetensors", "-q").out.count("\n") == 1
    (here / "dogs.safetensors").write_bytes(b"nothing")
    out = doctor("*.safetensors", "-q", code=3).out
    assert out == "does not fit: 1 thing stands in the way of a merge (3 experts, base base.safetensors)\n"


def test_one_document_for_any_number_of_threads(experts: Files, here: Path) -> None:
    texts = {doctor("*.safetensors", "--json", "--threads", threads).out for threads in (1, 2, 7)}
    assert len(texts) == 1
    found = taskmerge.doctor(["cars.safetensors", "dogs.safetensors", "maps.safetensors"], base="base.safetensors")
    assert json.loads(texts.pop())["pairs"] == json.loads(json.dumps(found.to_dict()))["pairs"]


def test_usage(experts: Files, here: Path) -> None:
    assert run("doctor").code == 2
    refused(2, "doctor", "cars.safetensors", "--on-missing", "maybe", says=("refuse, base, skip",))
    refused(2, "doctor", "cars.safetensors", f"{here}/cars.safetensors",
            says=("two inputs are named `cars`",))  # fmt: skip
    refused(2, "doctor", "base.safetensors", says=("no expert",))
    refused(3, "doctor", "dog.safetensors", says=("did you mean `dogs.safetensors`?",))
    refused(3, "doctor", "Qwen/Qwen2.5-1.5B", says=("hf download Qwen/Qwen2.5-1.5B",))
    refused(3, "doctor", "cars.safetensors", "--base", "org/name", says=("hf download org/name",))
    refused(5, "doctor", "*.safetensors", "--max-memory", "1M", says=("comparing these needs", "--max-memory allows"))


def test_damaged_inputs_are_named_and_the_rest_is_compared(experts: Files, here: Path) -> None:
    for task in ("cars", "dogs"):
        (here / f"{task}.safetensors").write_bytes((here / f"{task}.safetensors").read_bytes()[:-4])
    write_experts(here / "more", "maps", "pets", base=False)
    (here / "maps.safetensors").unlink()
    found = document("*.safetensors", "more/*.safetensors", code=3)
    assert words(found, "refusal").count("truncated") == 2
    assert [(one["name"], one["taken"]) for one in found["experts"]] == [
        ("cars", False), ("dogs", False), ("maps", True), ("pets", True)
    ]  # fmt: skip
    assert [(one["a"], one["b"]) for one in found["pairs"]] == [("maps", "pets")]
    carried_out(found)
    everything = document("cars.safetensors", "dogs.safetensors", code=3)
    assert everything["commands"] == everything["pairs"] == []
    assert "no command follows" in doctor("cars.safetensors", "dogs.safetensors", code=3).out


def test_what_is_not_finite_is_counted(experts: Files, here: Path) -> None:
    tensors = load("dogs.safetensors")
    tensors["proj"][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    save(here / "dogs.safetensors", tensors)
    found = document("*.safetensors", code=3)
    assert "3 entries are NaN or infinite, in `proj`" in words(found, "refusal")
    assert all("dogs.safetensors" not in one["arguments"] for one in found["commands"])
    carried_out(found)


def test_a_base_that_is_not_finite_is_used_for_nothing(experts: Files, here: Path) -> None:
    save(here / "base.safetensors", {**load("base.safetensors"), "proj": torch.full((8, 6), float("nan"))})
    found = document("*.safetensors", code=3)
    assert "48 entries" in words(found, "refusal")
    assert all("--base" not in one["arguments"] for one in found["commands"])


def test_every_refusal_is_told_and_not_the_first_alone(experts: Files, here: Path) -> None:
    for rows, task in enumerate(("cars", "dogs", "maps"), 2):
        more = {"classifier.weight": torch.ones(rows, 8), "ids": torch.tensor([rows])}
        save(here / f"{task}.safetensors", {**load(f"{task}.safetensors"), **more})
    save(
        here / "packed.safetensors", {"h.0.w_packed": torch.ones(2, 2, dtype=torch.uint8), "h.0.w_scale": torch.ones(2)}
    )
    save(here / "base.safetensors", {**model(0), "ids": torch.tensor([1])})
    torch.save(model(0), here / "old.bin")
    found = document("*.safetensors", "old.bin", code=3)
    said = words(found, "refusal")
    for text in ("is quantised (compressed-tensors)", "--allow-pickle", "`classifier.weight`", "`ids`: the integer"):
        assert text in said
    assert "--heads keep" in found["commands"][0]["command"]
    assert "--on-buffer first" in found["commands"][0]["command"]
    carried_out(found)


def test_the_same_options_as_proposed_leave_nothing_in_the_way(experts: Files, here: Path) -> None:
    save(here / "dogs.safetensors", {**load("dogs.safetensors"), "embed.weight": torch.ones(9, 8)})
    found = document("*.safetensors", code=4)
    assert found["commands"][0]["arguments"][6:9] == ["--keep-from", "base", "embed.weight"]
    assert document("*.safetensors", "--keep-from", "base", "embed.weight")["fits"]


def test_dialects_of_one_model_are_one(here: Path) -> None:
    states = {name: {key: one + 0.01 * seed for key, one in mixture(0).items()} for seed, name in enumerate("abc")}
    for place, (name, one) in enumerate(states.items()):
        save(here / f"{name}.safetensors", spoken(one, 3 * place))
    found = document("b.safetensors", "c.safetensors", "--base", "a.safetensors")
    assert "tensors are read under other names" in words(found, "note")
    assert all(one["closeness"]["kin"] == "fine-tuning" for one in found["experts"])
    carried_out(found)


def test_fp8_with_scales_is_compared_as_what_it_stands_for(here: Path) -> None:
    write_experts(here, "cars")
    coded, plain = stored(model(2, near=model(0)))
    save(here / "dogs.safetensors", coded)
    save(here / "plain.safetensors", plain)
    found = document("cars.safetensors", "dogs.safetensors", "plain.safetensors", "--base", "base.safetensors")
    assert "is dequantised while it is read" in words(found, "note")
    assert [(one["a"], one["b"]) for one in found["pairs"] if one["equal"]] == [("dogs", "plain")]


def test_adapters_and_the_bases_that_they_name(experts: Files, here: Path) -> None:
    (here / "config.json").write_text(json.dumps({"_name_or_path": "org/mine"}))
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 8), (16, 2)))
    front = "base_model.model.blocks.0.mlp.fc"
    pair = {f"{front}.lora_A.weight": a, f"{front}.lora_B.weight": b}
    save(here / "lora/adapter_model.safetensors", pair)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "org/other"}
    (here / "lora/adapter_config.json").write_text(json.dumps(config))
    save(here / "kohya.safetensors", {
        "blocks.0.mlp.fc.lora_down.weight": a, "blocks.0.mlp.fc.lora_up.weight": b,
        "blocks.0.mlp.fc.alpha": torch.tensor(2.0),
    })  # fmt: skip
    found = document("lora", "kohya.safetensors", "cars.safetensors", "--base", "base.safetensors")
    assert {one["name"]: one["kind"] for one in found["experts"]} == {
        "cars": "checkpoint", "kohya": "adapter", "lora": "adapter"
    }  # fmt: skip
    assert "says that it was trained on `org/other`" in words(found, "warning")
    assert {one["name"]: one["trained_on"] for one in found["experts"]}["lora"] == "org/other"
    assert [(one["a"], one["b"]) for one in found["pairs"] if one["equal"]] == [("kohya", "lora")]
    carried_out(found)
    alone = document("lora", "kohya.safetensors", code=4)
    assert "it says that it was trained on `org/other`" in words(alone, "refusal")
    assert [one["taken"] for one in alone["experts"]] == [False, False]
    assert alone["commands"] == []


def test_configuration_tokenizer_and_ends_of_text(here: Path) -> None:
    for place, name in enumerate(("base", "cars", "dogs")):
        save(here / name / "model.safetensors", model(place, near=model(0)))
        config = {"model_type": "x", "rope_theta": 1e4 if place < 2 else 1e6, "eos_token_id": place}
        (here / name / "config.json").write_text(json.dumps(config))
        (here / name / "tokenizer.json").write_text(name)
        (here / name / "chat_template.jinja").write_text("{{ x }}" * min(place, 1))
    found = document("cars", "dogs", "--base", "base", code=4)
    assert "`rope_theta`: 10000.0 in cars, base; 1000000.0 in dogs" in words(found, "refusal")
    assert "tokenizer.json differs: cars | dogs" in words(found, "warning")
    assert "eos_token_id" in words(found, "warning")
    for one in found["commands"]:
        assert "--config-from base" in one["command"]
        assert "--tokenizer-from" in one["command"]
        assert one["arguments"][-1].endswith("/")
    carried_out(found)


def test_a_folder_gets_what_only_the_base_has(here: Path) -> None:
    for place, name in enumerate(("base", "cars", "dogs")):
        tensors = model(place, near=model(0))
        save(here / name / "model.safetensors", tensors if name == "base" else {**tensors, "x": torch.ones(2)})
        (here / name / "config.json").write_text(json.dumps({"model_type": "x"}))
    save(here / "base/model.safetensors", {**model(0), "x": torch.ones(2), "text.proj": torch.ones(3, 3)})
    found = document("cars", "dogs", "--base", "base")
    assert all("--on-missing base" in one["command"] for one in found["commands"])
    carried_out(found)
    assert "text.proj" in load("merged-cart/model.safetensors")


def test_split_attention_of_a_clip_is_fused_where_matrices_are_factored(here: Path) -> None:
    for place, name in enumerate(("base", "cars", "dogs")):
        generator = torch.Generator().manual_seed(0)
        parts = {f"h.0.self_attn.{one}_proj.weight": torch.randn(4, 4, generator=generator) for one in "qkv"}
        parts = {key: one * (1 + place / 50) for key, one in parts.items()}
        save(here / name / "model.safetensors", {**parts, "norm": torch.ones(4)})
        (here / name / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    found = document("cars", "dogs")
    assert ["--qkv fused" in one["command"] for one in found["commands"]] == [True]
    carried_out(found)


def test_the_one_that_has_more_may_be_the_base(experts: Files, here: Path) -> None:
    (here / "base.safetensors").rename(here / "origin.safetensors")
    save(here / "origin.safetensors", {**load("origin.safetensors"), "text.proj": torch.ones(3, 3)})
    found = document("*.safetensors", code=4)
    assert "is it the base?" in words(found, "refusal")
    assert found["base"]["path"] == "origin.safetensors"
    assert all(one["closeness"]["kin"] == "fine-tuning" for one in found["experts"])
    carried_out(found)


def test_earlier_results_are_treated_as_a_merge_treats_them(experts: Files, here: Path) -> None:
    run("merge", "cars.safetensors", "dogs.safetensors", "-m", "average", "-o", "first.safetensors")
    found = document("*.safetensors")
    assert "left out first.safetensors: it is an earlier merge of cars, dogs" in words(found, "warning")
    (here / "cars.safetensors").unlink()
    found = document("*.safetensors", code=4)
    assert "the result of an earlier merge" in words(found, "refusal")
    assert found["experts"][1] | {"closeness": 0} == found["experts"][1] | {
        "closeness": 0,
        "taken": False,
        "kind": "merge",
    }
    carried_out(found)
    assert document("*.safetensors", "--allow-merged", "--skip-input", "merged-*")["fits"]


def test_task_vectors_are_of_this_base(experts: Files, here: Path) -> None:
    run("vectors", "cars.safetensors", "dogs.safetensors", "--base", "base.safetensors", "-o", "v")
    found = document("v/*.safetensors", "maps.safetensors", "--base", "base.safetensors")
    assert {one["name"]: one["closeness"]["kin"] for one in found["experts"]} == {
        "cars": "unknown", "dogs": "unknown", "maps": "fine-tuning"
    }  # fmt: skip
    carried_out(found)
    whole = document("cars.safetensors", "dogs.safetensors", "maps.safetensors", "--base", "base.safetensors")
    for one, other in zip(found["pairs"], whole["pairs"], strict=True):
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-6)
    assert document("v/*.safetensors", "--base", "maps.safetensors", code=4)["commands"] == []


def test_heads_of_other_sizes_are_kept_per_task_though_the_base_has_one(experts: Files, here: Path) -> None:
    """Not the base's in place of theirs, which would be no head of any task."""
    for rows, name in enumerate(("base", "cars", "dogs", "maps"), 2):
        save(here / f"{name}.safetensors", {**load(f"{name}.safetensors"), "classifier.weight": torch.ones(rows, 8)})
    found = document("*.safetensors", code=4)
    for one in found["commands"]:
        assert "--heads keep" in one["command"]
        assert "--keep-from" not in one["command"]
    carried_out(found)


@pytest.mark.parametrize("damaged", [False, True])
def test_both_commands_merge_the_same_tensors(experts: Files, here: Path, damaged: bool) -> None:
    """The names of the experts alone agree, so that the second needs no option for itself; one may be left out."""
    for name in ("cars", "dogs", "maps"):
        save(here / f"{name}.safetensors", {f"net.{key}": one for key, one in load(f"{name}.safetensors").items()})
    if damaged:
        (here / "pets.safetensors").write_bytes(b"nothing")
    found = document("*.safetensors", code=3 if damaged else 4)
    assert ["--strip-prefix net." in one["command"] for one in found["commands"]] == [True, True]
    carried_out(found)
    merged = [load(one["arguments"][-1]) for one in found["commands"]]
    assert merged[0].keys() == merged[1].keys() == load("base.safetensors").keys()


# --- commands --------------------------------------------------------------------------------------------------

NAMES = ("a b", "it's", 'q"uote', "two\nlines", "-dash", "~home", "eq=ual", "[br]acket*", "ümlaut", "$(date)", "tab\t")


def test_the_page_as_a_shell_script(here: Path) -> None:
    """All that is printed behind the last finding, given to bash as it is."""
    files = write_experts(here / "in", *NAMES)
    for name, path in files.items():
        path.rename(here / f"{name}.safetensors")
    page = doctor(*(f"./{name}.safetensors" for name in NAMES), "--base", "base.safetensors").out
    script = page[page.index("# differences from the base") :]
    assert script.isascii() or script.replace("\n", "").isprintable()
    told = "taskmerge() { printf '%s\\0' \"$@\" ''; }\n"  # what the shell makes of the words, instead of the program
    done = subprocess.run(["bash", "-e", "-c", told + script], capture_output=True, check=True)
    commands = [one.split("\0") for one in done.stdout.decode().removesuffix("\0\0").split("\0\0")]
    assert [run(*words).out for words in commands] == [
        "merged-task-arithmetic.safetensors\n",
        "merged-cart.safetensors\n",
    ]


def test_names_that_were_given_are_kept(experts: Files, here: Path) -> None:
    found = document("autos=cars.safetensors", "dogs.safetensors", "--base", "base.safetensors")
    assert "autos=cars.safetensors" in found["commands"][0]["arguments"]
    carried_out(found)
    refound = document("*.safetensors", "--skip-input", "merged-*")
    assert re.search(r"-o merged-cart-2\.safetensors$", refound["commands"][1]["command"])


def test_what_is_said_of_a_terminal_is_not_obeyed(here: Path) -> None:
    evil = "blocks.0.\x1b[31m\x1b]0;title\x07\nerror: w.weight"
    for index, name in enumerate(("base", "a")):
        save(
            here / f"{name}.safetensors", {evil: torch.full((3, 3), float(index + 1)), f"{name}\x1b[2J": torch.ones(2)}
        )
    for arguments in ((), ("--json",)):
        out = run("doctor", "*.safetensors", *arguments).out
        assert set(out) - {"\n"} == {one for one in out if one.isprintable()}


def test_the_page_in_the_docs_is_what_comes_out(here: Path) -> None:
    root = Path(__file__).parents[2]
    (here / "examples").symlink_to(root / "examples")
    (session,) = re.findall(
        r"^```console\n\$ (.*?)^```$", (root / "docs/doctor.md").read_text(), re.DOTALL | re.MULTILINE
    )
    command, page = session.split("\n", 1)
    assert doctor(*shlex.split(command)[2:]).out == page


def test_state_dicts_in_memory_are_looked_at_like_files(experts: Files, here: Path) -> None:
    states = {name: load(path) for name, path in experts.items()}
    base = states.pop("base")
    found, filed = taskmerge.doctor(states, base=base), taskmerge.doctor(["*.safetensors"])
    assert found.pairs == filed.pairs
    assert [one.closeness for one in found.experts] == [one.closeness for one in filed.experts]
    assert found.fits
    assert found.commands == ()
    CHECK.validate(json.loads(json.dumps(found.to_dict())))
    states["cars"]["proj"] = torch.ones(2, 2)
    states["dogs"]["norm.weight"] = torch.full((8,), float("nan"))
    odd = taskmerge.doctor(states, base=base, max_memory="2G")
    assert odd.exit_code == 3
    assert {one.where for one in odd.refusals} == {None, "dogs (in memory)"}
