"""Compares the headers of all inputs before a byte of weight is read, and puts every problem into one message."""

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape

from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.errors import Mismatch, UsageError, Way, listed
from taskmerge.experts.classes import TABLE_WORDS, block_of, classify
from taskmerge.experts.lora_names import factor
from taskmerge.experts.sources import Source
from taskmerge.specs.heads import head_names
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.renaming import helpful

BASE = "base"  # what --keep-from calls the base
SHOWN = 12  # names and options that a message lists in full
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
Keeping = Callable[[Sequence[str]], tuple[str, Way | None]]
"""How a hint says that tensors can stand in the output unmerged, and the way out that this is."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """The tensors to merge, and what is left aside with the reason."""

    names: tuple[str, ...]
    heads: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def selected(names: Iterable[str], spec: MergeSpec) -> list[str]:
    """The names that --include and --exclude let through and --keep-from does not take, sorted."""
    return sorted(
        name
        for name in names
        if (not spec.include or _matches(name, spec.include))
        and not _matches(name, spec.exclude)
        and spec.keeper(name) is None
    )


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def agree(
    spec: MergeSpec, base: Source | None, experts: Sequence[Source], needs_base: bool, *, keeps: bool = False
) -> Agreed:
    """The tensors that can be merged, or `Mismatch` with everything that does not fit.

    The base counts where it is read: for task vectors (`needs_base`), or under --on-missing base. `keeps`: the
    caller knows --keep-from, which a hint may name.
    """
    if spec.on_missing == "base" and base is None:
        raise UsageError("--on-missing base needs a base", where="--on-missing", hint="name it: `--base FILE`")
    used = base if needs_base or spec.on_missing == "base" else None
    union = selected({name for expert in experts for name in expert.specs}, spec)
    _refuse_lone_base(spec, base, experts)
    _refuse_factors(union, experts)
    heads = _heads(union, used, experts, needs_base) if spec.heads == "keep" else []
    names = sorted(set(union) - set(heads))
    notes = [*_unmatched(spec, base, experts), *_beside_heads(names, heads)]
    if spec.on_missing == "skip":
        _refuse_skipped(names, used, experts)
        kept = [name for name in names if all(name in source.specs for source in (*experts, *([used] if used else [])))]
        if len(kept) < len(names):
            notes.append(f"left out {len(names) - len(kept)} tensors that some input lacks (--on-missing skip)")
        names = kept
    problems = [*_missing(names, used, experts, spec), *_shapes(names, used, experts)]
    absent = [name for name in names if needs_base and used is not None and name not in used.specs]
    if absent and used is not None:
        problems.append(f"{used.where}: the base lacks {len(absent)} tensors that experts have: {listed(absent)}")
    if problems:
        keeping: Keeping = lambda odd: _keeping(odd, names, base, experts) if keeps else ("", None)  # noqa: E731
        hint, ways = _hint(spec, names, absent, used, experts, keeping)
        raise Mismatch("the inputs do not fit together\n" + "\n".join(problems), hint=hint, ways=ways)
    held = set(union)
    alone = [name for name in selected(base.specs, spec) if name not in held] if base else []
    copied = alone if spec.on_missing == "base" else []
    if alone and not copied:
        notes.append(f"left out {len(alone)} tensors that only the base has (--on-missing base copies them)")
    return Agreed(tuple(names), tuple(heads), tuple(copied), () if copied else tuple(alone), tuple(notes))


def _unmatched(spec: MergeSpec, base: Source | None, experts: Sequence[Source]) -> list[str]:
    """A note for every glob that lets nothing through, or keeps nothing out."""
    every = {name for source in (*experts, *([base] if base else [])) for name in source.specs}
    globs = [*(("--include", glob) for glob in spec.include), *(("--exclude", glob) for glob in spec.exclude)]
    return [
        f"{flag} '{glob}' matches no tensor"
        for flag, glob in globs
        if not any(_matches(name, [glob]) for name in every)
    ]


def _refuse_lone_base(spec: MergeSpec, base: Source | None, experts: Sequence[Source]) -> None:
    """One input whose tensors are a strict superset of the others', which agree, is most likely the base."""
    if base is not None or len(experts) < 2 or spec.on_missing != "refuse":
        return
    sets = [frozenset(selected(expert.specs, spec)) for expert in experts]
    largest = max(range(len(sets)), key=lambda index: len(sets[index]))
    others = set(sets[:largest] + sets[largest + 1 :])
    if len(others) == 1 and sets[largest] > (common := others.pop()):
        where = experts[largest].where
        extra = sorted(sets[largest] - common)
        raise Mismatch(
            f"it has {len(extra)} tensors that no other input has ({listed(extra)}); is it the base?", where=where,
            hint=f"say `--base {where}` to use it as the base, or `--on-missing skip` to merge what all inputs share",
            ways=({"base": where}, {"on_missing": "skip"}),
        )  # fmt: skip


def _refuse_factors(names: Sequence[str], experts: Sequence[Source]) -> None:
    """Refuses checkpoints that hold LoRA factors beside whole weights: averaged apart they are no average."""
    found = {name: one for name in names if (one := factor(name)) is not None}
    sides = Counter(module for module, _ in set(found.values()))
    paired = [name for name, one in found.items() if sides[one.module] > 1]
    holders = [expert for expert in experts if expert.kind == "weight" and any(name in expert.specs for name in paired)]
    if holders:
        raise Mismatch(
            f"it holds LoRA factors beside whole weights: {listed(paired)}; factors averaged apart are no average of "
            "their products", where=holders[0].where,
            hint="fold the adapter in (peft's `merge_and_unload`), or leave it out: `--exclude '*lora_*'`",
            ways=({"exclude": ("*lora_*",)},),
        )  # fmt: skip


# --- task heads ------------------------------------------------------------------------------------------------


def _heads(union: Sequence[str], base: Source | None, experts: Sequence[Source], needs_base: bool) -> list[str]:
    """The tensors of task heads, as whole modules: known by name, or by what no shared encoder has.

    That is a tensor whose shapes differ between experts or from the base, or one outside numbered blocks that the base
    lacks. Names that agree but for a prefix tell nothing.
    """
    if needs_base and mending_prefix([_chosen(expert, union) for expert in experts], base.specs if base else None):
        return []
    odd = _differing(union, [*experts, *([base] if base else [])])
    if needs_base and base is not None:
        odd += [name for name in union if name not in base.specs and block_of(name) is None]
    around = _encoders(union)
    modules = {_module(name, around) for name in odd}
    named = head_names(union)
    return [name for name in union if name in named or name in modules or _inside(name, modules)]


def _inside(name: str, modules: Container[str]) -> bool:
    """Whether a tensor lies in one of the modules, at any depth."""
    return any(start in modules for start in _ancestors(name))


def _ancestors(name: str) -> list[str]:
    """The modules around a tensor, outermost first, each with its dot: `a.`, `a.b.` of `a.b.weight`."""
    segments = name.split(".")
    return [".".join(segments[:count]) + "." for count in range(1, len(segments))]


def _encoders(names: Sequence[str]) -> frozenset[str]:
    """The modules that can be no head: those around a numbered block (as the encoder around `visual.proj`), and those
    that hold most of the model."""
    sizes = Counter(module for name in names for module in _ancestors(name))
    blocks = {module for name in names if block_of(name) for module in _ancestors(name)}
    return frozenset(blocks | {module for module, count in sizes.items() if 2 * count > len(names)})


def _module(name: str, encoders: Container[str]) -> str:
    """The outermost module around a tensor that can be a head of its own; the tensor itself where there is none.

    Such a module is no encoder, no table or part of one, and no plain sequence, whose numbered layers stand for
    themselves: the first ones of VGG's `classifier` are pretrained.
    """
    for module in _ancestors(name):
        words = {word for segment in module.split(".") for word in segment.split("_")}
        sequence = name.removeprefix(module).split(".")[0].isdigit()
        if not (module in encoders or sequence or words & TABLE_WORDS):
            return module
    return name


def _beside_heads(names: Sequence[str], heads: Sequence[str]) -> list[str]:
    """A note on what is merged although it lies in one outermost module with a head, outside the encoder's blocks."""
    if not heads:
        return []
    around = {_ancestors(name)[0] for name in heads if len(_ancestors(name)) > 1}
    encoders = {_ancestors(name)[0] for name in names if block_of(name) is not None}
    beside = [name for name in names if _inside(name, around - encoders)]
    return [f"merged, though beside what is kept per task: {listed(beside)}"] if beside else []


def _differing(names: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """The tensors of which the sources hold different shapes."""
    return [name for name in names if len({source.specs[name].shape for source in sources if name in source.specs}) > 1]


def _missing(names: Sequence[str], base: Source | None, experts: Sequence[Source], spec: MergeSpec) -> list[str]:
    """What every expert lacks of what most have, and what it has that most lack."""
    problems = []
    counts = Counter(name for expert in experts for name in expert.specs)
    filled = base.specs if spec.on_missing == "base" and base is not None else {}
    open_names = [name for name in names if counts[name] < len(experts) and name not in filled]
    for expert in experts:
        lacking = [name for name in open_names if name not in expert.specs and 2 * counts[name] > len(experts)]
        extra = [name for name in open_names if name in expert.specs and 2 * counts[name] <= len(experts)]
        if lacking:
            problems.append(f"{expert.where}: lacks {len(lacking)} tensors that other experts have: {listed(lacking)}")
        if extra:
            problems.append(f"{expert.where}: has {len(extra)} tensors that other experts lack: {listed(extra)}")
    return problems


def _shapes(names: Sequence[str], base: Source | None, experts: Sequence[Source]) -> list[str]:
    """One line for every tensor whose shape or kind of dtype differs between inputs."""
    problems = []
    sources = [*([base] if base else []), *experts]
    for name in names:
        having = [source for source in sources if name in source.specs]
        if any(not _alike(source.specs[name], having[-1].specs[name]) for source in having):
            holders: dict[str, list[str]] = {}
            for source in having:
                holders.setdefault(_said(source.specs[name]), []).append(source.where)
            problems.append(
                f"`{name}`: " + "; ".join(f"{spec} in {', '.join(where)}" for spec, where in holders.items())
            )
    return problems[:SHOWN] + ([f"... and {len(problems) - SHOWN} more tensors"] if len(problems) > SHOWN else [])


def _alike(first: TensorSpec, second: TensorSpec) -> bool:
    if first.shape != second.shape or is_float(first.dtype) != is_float(second.dtype):
        return False
    return is_float(first.dtype) or first.dtype == second.dtype


def _said(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _hint(
    spec: MergeSpec, names: Sequence[str], absent: Sequence[str], base: Source | None, experts: Sequence[Source],
    keeping: Keeping,
) -> tuple[str, list[Way]]:  # fmt: skip
    """The options that mend the mismatch: a prefix, other names, the exact --exclude line, or --on-missing; and the
    same for programs."""
    chosen = [_chosen(expert, names) for expert in experts]
    prefix = mending_prefix(chosen, base.specs if base else None)
    if prefix:
        heads = any(map(head_names, chosen)) and spec.heads == "refuse"
        options = f"--strip-prefix {prefix}" + (" --heads keep" if heads else "")
        way = {"strip_prefix": prefix, **({"heads": "keep"} if heads else {})}
        return f"the names agree without the prefix `{prefix}`: `{options}`", [way]
    strangers = _strangers(names, base, experts)
    pairs = zip(strangers, chosen, strict=True)
    if any(lacking and extra and _no_heads(extra, own) for (lacking, extra), own in pairs):
        return _other_names(strangers, [*experts, *([base] if base else [])])
    odd = sorted({*_differing(names, [*experts, *([base] if base else [])]), *absent})
    if odd:
        keep = spec.heads == "refuse" and not any(block_of(name) for name in odd)
        own = ", or keep every task's own with `--heads keep`" if keep else ""
        (left, without), (kept, taken) = _leaving_out(odd, names), keeping(odd)
        ways = [way for way in (taken, {"heads": "keep"} if keep else None, without) if way is not None]
        if keep and _like_heads(odd, names, base, experts):
            ways.insert(0, {"heads": "keep"})
        return left + kept + own, ways
    hint = "`--on-missing skip` merges what all experts share; `--on-missing base` takes absent tensors as unchanged"
    return hint, [*([{"on_missing": "base"}] if base is not None else []), {"on_missing": "skip"}]


def _like_heads(odd: Sequence[str], names: Sequence[str], base: Source | None, experts: Sequence[Source]) -> bool:
    """Whether tensors that differ are heads: by name, or because there is no base that has any and none is a table."""
    if head_names(names).issuperset(odd):
        return True
    shapes = _shapes_of(experts)
    tables = [name for name in odd if classify(name, shapes[name], floating=True) == "embedding"]
    return not tables and (base is None or not any(name in base.specs for name in odd))


def _strangers(
    names: Sequence[str], base: Source | None, experts: Sequence[Source]
) -> list[tuple[list[str], list[str]]]:
    """For every expert what it lacks of the base (else of what most experts have, of two the first), and what it has
    beside that."""
    counts = Counter(name for expert in experts for name in expert.specs)
    most = [name for name in names if 2 * counts[name] + (name in experts[0].specs) > len(experts)]
    usual = list(base.specs) if base is not None else most
    chosen, known, found = set(names), set(usual), []
    for expert in experts:
        lacking = [name for name in usual if name not in expert.specs]
        extra = [name for name in expert.specs if name in chosen and name not in known]
        found.append((lacking, extra))
    return found


def _no_heads(extra: Sequence[str], names: Collection[str]) -> bool:
    """Whether what an expert has beside others is more than heads: tensors of blocks, or most of all."""
    return 2 * len(extra) > len(names) or any(block_of(name) for name in extra)


def _other_names(strangers: Sequence[tuple[list[str], list[str]]], sources: Sequence[Source]) -> tuple[str, list[Way]]:
    """The renamings by which inputs would agree; that they may be of two models, where there are none."""
    shapes = _shapes_of(sources)
    renamings = dict.fromkeys(text for lacking, extra in strangers for text in helpful(extra, lacking, shapes))
    if not renamings:
        hint = "the names on both sides differ: are these fine-tunings of one model? `--map 'FROM* = TO*'` renames"
        return hint, []
    some = tuple(renamings)[:SHOWN]
    options = " ".join(f"--map '{text}'" for text in some)
    return f"if these are the same tensors under other names, `{options}` reads them so", [{"map": some}]


def _shapes_of(sources: Sequence[Source]) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for source in sources for name, spec in source.specs.items()}


def _refuse_skipped(names: Sequence[str], base: Source | None, experts: Sequence[Source]) -> None:
    """Refuses to skip tensors of blocks that an input has under another name, in the same shape."""
    for expert, (lacking, extra) in zip(experts, _strangers(names, base, experts), strict=True):
        own, other = ([name for name in each if block_of(name) is not None] for each in (extra, lacking))
        renamings = helpful(own, other, _shapes_of([*experts, *([base] if base else [])])) if own and other else []
        if renamings:
            options = " ".join(f"--map '{text}'" for text in renamings)
            raise Mismatch(
                f"--on-missing skip would drop tensors that other inputs have under other names: {listed(own)}",
                where=expert.where, hint=f"`{options}` reads them so; to drop them all the same, say `--exclude GLOB`",
                ways=({"map": tuple(renamings)},),
            )  # fmt: skip


def _leaving_out(odd: Sequence[str], names: Sequence[str]) -> tuple[str, Way | None]:
    """The options that leave `odd` out of `names`: name by name if they are few, else by globs that match no other."""
    if 2 * len(odd) > len(names) and len(odd) > SHOWN:
        return f"{len(odd):,} of {len(names):,} tensors differ: are these fine-tunings of one model?", None
    globs = globs_of(odd, names)
    if not globs:
        return f"leave these {len(odd):,} tensors out with `--exclude GLOB`", None
    options = " ".join(f"--exclude '{glob}'" for glob in globs)
    return f"leave these tensors out: {options}", {"exclude": tuple(globs)}


def _keeping(
    odd: Sequence[str], names: Sequence[str], base: Source | None, experts: Sequence[Source]
) -> tuple[str, Way | None]:
    """Whose tensors can stand in the output instead: a folder that lacks them is no whole model."""
    globs, who = globs_of(odd, names), keeper_of(odd, base, experts)
    if not globs or who is None or (2 * len(odd) > len(names) and len(odd) > SHOWN):
        return "", None
    whose = "the base's" if who == BASE else f"those of {who}"
    options = " ".join(f"--keep-from {who} '{glob}'" for glob in globs)
    way = {"keep_from": tuple((who, glob) for glob in globs)}
    return f", or take {whose}, unmerged: {options}", way if who == BASE else None


def globs_of(odd: Sequence[str], names: Iterable[str]) -> list[str]:
    """Globs of `odd` that match no other of `names`: each by itself if they are few, else `*` for numbers; none where
    that takes too many."""
    if len(odd) <= SHOWN:
        return [escape(name) for name in odd]
    globs = sorted({NUMBER.sub("*", name) for name in odd})
    others = set(names) - set(odd)
    return [] if len(globs) > SHOWN or any(_matches(name, globs) for name in others) else globs


def keeper_of(names: Iterable[str], base: Source | None, experts: Sequence[Source]) -> str | None:
    """The input that has all these tensors, the base first, as --keep-from calls it."""
    wanted = set(names)
    if base is not None and wanted <= base.specs.keys():
        return BASE
    return next((one.task for one in experts if one.kind == "weight" and wanted <= one.specs.keys()), None)


def _chosen(expert: Source, names: Iterable[str]) -> frozenset[str]:
    """The names of one expert that take part."""
    return frozenset(expert.specs).intersection(names)


def mending_prefix(experts: Sequence[Collection[str]], base: Iterable[str] | None = None) -> str:
    """`common_prefix` of encoders: known task heads, which a base need not have, are set aside."""
    return common_prefix([frozenset(names) - head_names(names) for names in experts], base)


def common_prefix(experts: Sequence[Iterable[str]], base: Iterable[str] | None = None) -> str:
    """The prefix (up to a dot) without which all experts have the same names, all of them in the base; else "".

    It may stand before all names of an input or before those of one tower (`vision_model.` of a whole CLIP).
    """
    sets = [frozenset(names) for names in experts]
    origin = None if base is None else frozenset(base)
    if _one_set(sets, origin):
        return ""
    everything = [*sets, *([origin] if origin else [])]
    prefixes = {prefix for names in everything for prefix in _leading(names)}
    for prefix in sorted(prefixes, key=lambda text: (len(text), text)):
        bare = [frozenset(name.removeprefix(prefix) for name in names) for names in everything]
        unique = all(len(short) == len(names) for short, names in zip(bare, everything, strict=True))
        if unique and _one_set(bare[: len(sets)], bare[-1] if origin else None):
            return prefix
    return ""


def _leading(names: frozenset[str]) -> set[str]:
    """What may be a prefix: the segments that all names start with, or a block's tower."""
    starts = [_common_start(names), *({tuple(block.tower.split(".")) for block in map(block_of, names) if block})]
    return {".".join(parts[:count]) + "." for parts in starts for count in range(1, len(parts) + 1)}


def _common_start(names: frozenset[str]) -> list[str]:
    """The segments that all names start with, never a whole name."""
    columns = zip(*(name.split(".")[:-1] for name in sorted(names)), strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def _one_set(sets: Sequence[frozenset[str]], base: frozenset[str] | None) -> bool:
    return len(set(sets)) == 1 and (base is None or sets[0] <= base)


def specs_of(names: Iterable[str], experts: Sequence[Source]) -> dict[str, TensorSpec]:
    """Each tensor as the first expert that has it describes it."""
    return {name: next(expert.specs[name] for expert in experts if name in expert.specs) for name in names}


def dtypes_of(name: str, experts: Sequence[Source]) -> Mapping[str, list[str]]:
    """The dtype codes of one tensor and the experts that hold it so; codes with scales count as what they came from."""
    holders: dict[str, list[str]] = {}
    for expert in experts:
        if name in expert.specs:
            holders.setdefault(expert.specs[name].kept, []).append(expert.task)
    return holders
