"""Methods, options and suites are known without torch: to a shell that completes a line, and to a slip of the pen."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import run

from taskmerge.cli import completing
from taskmerge.cli.commands import load
from taskmerge.cli.program import app
from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.methods.adaptive_registry import RECOMMENDED, adaptive_methods, find_adaptive
from taskmerge.methods.listing import AUTO, check_adaptive, check_merging, listed
from taskmerge.methods.registry import DEFAULT, _registry, find, methods
from taskmerge.specs import merge
from taskmerge.specs.suite_file import packaged

PROGRAM = [sys.executable, "-X", "importtime", "-m", "taskmerge"]


# --- what is read from the source is what is declared ----------------------------------------------------------


def test_methods_are_listed_as_they_are_declared() -> None:
    every: dict[str, Any] = {**_registry().methods, **_registry().internal, **adaptive_methods()}
    assert listed().keys() == every.keys()
    for name, own in listed().items():
        declared = every[name]
        assert own.summary == declared.summary
        assert own.aliases == declared.aliases
        assert own.adaptive == (name in adaptive_methods())
        settings = declared.settings.values()
        assert [option.flag for option in own.options] == [setting.flag for setting in settings]
        assert [option.help for option in own.options] == [setting.option.help for setting in settings]
        choices = [setting.type if isinstance(setting.type, tuple) else () for setting in settings]
        assert [option.choices for option in own.options] == choices
        if not own.adaptive:
            assert (own.internal, own.gives, own.space) == (declared.internal, declared.gives, declared.space)


def test_what_runs_where_nobody_says_is_what_the_registries_say() -> None:
    assert completing.DEFAULTS == {"merge": DEFAULT, "adapt": RECOMMENDED}
    assert (completing.FINISH, completing.DEPTH) == (merge.FINISH, merge.DEPTH)
    assert get_args(AUTO) == ()
    assert AUTO not in {*methods(), *adaptive_methods()}


def test_what_follows_in_a_chain_may_follow() -> None:
    found = {name for name, _ in completing.chained_methods()}
    for name in methods():
        try:
            merge.MergeSpec(method="dare", then=name).chain()
        except TaskmergeError:
            assert name not in found
        else:
            assert name in found


# --- slips -----------------------------------------------------------------------------------------------------


NAMES = sorted({*methods(), *adaptive_methods(), *(alias for own in methods().values() for alias in own.aliases),
                "dare_ties", "DARE-TIES", "breadcrumbs_ties", "adamerging++", "Tint++", "composed_base"})  # fmt: skip


def slips() -> st.SearchStrategy[str]:
    """Names with a letter too many, too few, or another; with other dashes and cases; and anything else."""
    letters = st.sampled_from("abcdeiostz_-+. ")

    def slip(name: str, place: int, letter: str, kind: int) -> str:
        place %= len(name) + 1
        return [
            name[:place] + name[place + 1 :], name[:place] + letter + name[place:],
            name[:place] + letter + name[place + 1 :], name.replace("_", "-"), name.upper(), name,
        ][kind]  # fmt: skip

    slipped = st.builds(slip, st.sampled_from(NAMES), st.integers(0, 30), letters, st.integers(0, 5))
    return st.one_of(slipped, st.text(max_size=12))


@settings(deadline=None, max_examples=80)
@given(slips())
def test_the_quick_answer_is_the_slow_one(name: str) -> None:
    """Whatever is refused without torch is refused with it, in the same words; what exists is let through."""
    for quick, slow in ((check_merging, find), (check_adaptive, find_adaptive)):
        messages = []
        for ask in (quick, slow):
            try:
                ask(name)
            except UsageError as error:
                messages.append(error.message)
        if name.strip().lower() == AUTO and slow is find_adaptive:
            continue  # the command knows what that is
        assert messages[:1] == messages[1:], name


def test_a_slip_is_answered_without_torch(tmp_path: Path) -> None:
    """In under half a second on a quiet machine; here in processor time, the best of three."""
    times = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([*PROGRAM, "merge", "-m", "tie", "a.safetensors"], capture_output=True, text=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert done.returncode == 2
    assert done.stderr.endswith("error: --method: unknown method `tie`\nhint: did you mean `ties`?\n")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "numpy", "scipy", "safetensors", "transformers"}
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["merge", "-m", "tsvm", "x"], "did you mean `tsv_m`?"),
        (["merge", "-m", "dare", "--then", "tie", "x"], "--then: unknown method `tie`"),
        (["merge", "-m", "adarank", "x"], "taskmerge adapt --method adarank"),
        (["merge", "-m", "dare_ties", "x"], "--method dare --then ties"),
        (["adapt", "-m", "adarnk"], "did you mean `adarank`?"),
        (["adapt", "-m", "slerp"], "taskmerge merge --method slerp"),
        (["adapt", "--with", "tnt"], "--with: unknown adaptive method `tnt`"),
    ],
)
def test_slips_in_all_places(here: Path, arguments: list[str], says: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert says in outcome.words


# --- a shell ---------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """What follows a line, as bash is told; in this process."""
    from typer.completion import completion_init

    load()
    completion_init()
    try:
        from typer._click.shell_completion import get_completion_class
    except ImportError:
        from click.shell_completion import get_completion_class
    words = line.split(" ")
    shell = get_completion_class("bash")(typer.main.get_command(app), {}, "taskmerge", "_TASKMERGE_COMPLETE")
    return [item.value for item in shell.get_completions(words[1:-1], words[-1])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("taskmerge merge --method ti", ["ties"]),
        ("taskmerge merge a.safetensors -m ", sorted(methods())),
        ("taskmerge merge -m dare --then tsv", ["tsv_m"]),
        ("taskmerge merge -m ties --agg", ["--aggregate"]),
        ("taskmerge merge -m ties --aggregate ", ["mean", "sum"]),
        ("taskmerge merge a b -m ties --aggregate m", ["mean"]),
        ("taskmerge merge -m ties --aggregate = s", ["sum"]),
        ("taskmerge merge --ran", ["--rank"]),
        ("taskmerge merge -m ties --ran", []),
        ("taskmerge merge -m dare --then ties --then-", ["--then-density"]),
        ("taskmerge merge -m dare --coef", ["--coefficients", "--coefficient"]),
        ("taskmerge merge -m average --lines --alp", ["--alpha"]),
        ("taskmerge merge -m cart --rank 0.08 --ran", []),
        ("taskmerge merge --suite glue-ro", ["glue-roberta-base-7", "glue-roberta-base-8"]),
        ("taskmerge merge --rank ", []),
        ("taskmerge merge exp", []),
        ("taskmerge adapt -m ad", ["adamerging", "adamerging_plus", "adarank"]),
        ("taskmerge adapt --method au", ["auto"]),
        ("taskmerge adapt -m adarank --orig", ["--origin"]),
        ("taskmerge adapt -m adamerging --layout ", ["tensor", "task"]),
        ("taskmerge adapt -m heads --init cart --ran", ["--rank"]),
        ("taskmerge adapt --with tin", ["tint", "tint_plus"]),
        ("taskmerge adapt --suite nyu", ["nyuv2-resnet50"]),
        ("taskmerge eval x --suite ", list(packaged())),
        ("taskmerge methods tsv", ["tsv_m"]),
        ("taskmerge suites nyu", ["nyuv2-resnet50"]),
    ],
)
def test_lines_are_completed(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


@pytest.mark.parametrize("name", methods())
def test_every_option_of_every_method_is_completed(name: str) -> None:
    for setting in methods()[name].settings.values():
        assert setting.flag in completed(f"taskmerge merge --method {name} {setting.flag[:-1]}")


@pytest.mark.parametrize(
    ("shell", "says"), [("bash", "--aggregate"), ("zsh", '"--aggregate"'), ("fish", "--aggregate\t")]
)
def test_a_shell_is_answered_without_torch(shell: str, says: str) -> None:
    line = "taskmerge merge --method ties --agg"
    environment = {**os.environ, "_TASKMERGE_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": "4"}
    environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(PROGRAM, capture_output=True, text=True, env=environment)
    assert says in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "numpy", "scipy", "safetensors", "transformers"}
