"""What `taskmerge merge` does with its words: options over recipe over defaults, then plan, merge, show."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import show, tokens
from taskmerge.cli.merge_words import MergeWords
from taskmerge.cli.meter import Bar
from taskmerge.cli.words import flags_of, given_options
from taskmerge.errors import UsageError
from taskmerge.merging.merge import carry_out
from taskmerge.merging.options import KEYWORDS
from taskmerge.merging.planned import MergePlan, planned
from taskmerge.merging.prepare import check_outputs, prepare
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import Request, requested
from taskmerge.methods.registry import problems
from taskmerge.specs.load import load_overrides, load_weights
from taskmerge.specs.suite import Suite


def run(words: MergeWords, suite: Suite | None, ahead: Ahead) -> None:
    """Carries out one `merge` command; `suite` is what --suite names."""
    show.notices((), problems(), words.quiet)
    inputs, options = tokens.split_merging(words.inputs or [], flags_of(MergeWords))
    keywords = {**load_overrides(words.set or ()), **_keywords(words), **options}
    if words.from_ is not None:
        from taskmerge.cli import rebuilding  # what few merges need

        rebuilding.run(words.from_, inputs, keywords, words, ahead)
        return
    if words.task is not None:
        raise UsageError("only a folder that `adapt` wrote has tasks", where="--task", hint="name it with --from")
    request = requested(inputs, keywords, suite=suite, recipe=words.recipe)
    if not request.inputs:
        raise UsageError("there is nothing to merge", hint="give the fine-tuned checkpoints, such as *.safetensors")
    if words.dry_run:
        dry_run(request, words)
    elif words.as_adapter and words.choose is None:
        finish(_as_adapter(request, words, ahead), (), words)
    elif words.choose is not None:
        from taskmerge.cli import choosing  # what evaluates models costs a tenth of a second to import

        finish(choosing.run(request, words, words.choose, suite, ahead), (), words)
    else:
        finish(*merged(request, words, ahead), words)


def merged(request: Request, words: MergeWords, ahead: Ahead) -> tuple[MergeReceipt, list[str]]:
    """Plans, tells and merges; the receipt, and the notes and warnings that were told."""
    prepared = prepare(request.inputs, request.spec, request.opening, request.running)
    _announce(planned(prepared), words.quiet)
    with Bar("merging", words.quiet) as bar:
        receipt = carry_out(prepared, replace(request.running, progress=bar.update), ahead)
    return receipt, [*prepared.inputs.notes, *prepared.plan.notes, *prepared.inputs.warnings]


def _as_adapter(request: Request, words: MergeWords, ahead: Ahead) -> MergeReceipt:
    """Merges into an adapter."""
    from taskmerge.merging.as_adapter import merge_as_adapter

    with Bar("merging", words.quiet) as bar:
        return merge_as_adapter(replace(request, running=replace(request.running, progress=bar.update)), ahead)


def dry_run(request: Request, words: MergeWords) -> None:
    """Prints the plan, which is of use even where its output is in the way."""
    prepared = prepare(request.inputs, request.spec, request.opening, replace(request.running, overwrite=True))
    plan = planned(prepared)
    if words.json:
        show.document(plan.to_dict())
    else:
        _announce(plan, words.quiet)
        show.plan_table(plan)
    check_outputs(prepared, request.running)


def _announce(plan: MergePlan, quiet: bool) -> None:
    """The plan, notes and warnings, before the work."""
    for line in show.plan_lines(plan):
        show.say(line, quiet)
    show.notices(plan.notes, plan.warnings, quiet)


def finish(receipt: MergeReceipt, announced: Sequence[str], words: MergeWords) -> None:
    """What the merge itself gave rise to say, its cost, and the result on stdout."""
    notes, warnings = ([text for text in texts if text not in announced] for texts in (receipt.notes, receipt.warnings))
    show.notices(notes, warnings, words.quiet)
    rate = show.size(receipt.bytes_read / max(receipt.seconds, 1e-9))
    show.say(f"done in {receipt.seconds:.1f} s ({rate}/s), peak memory {show.size(receipt.peak_memory)}", words.quiet)
    show.document(receipt.to_dict()) if words.json else show.results(receipt.paths)


def _keywords(words: MergeWords) -> dict[str, Any]:
    """What was said, as keywords of `merge`; what was not said is absent."""
    keywords = {name: value for name, value in given_options(words).items() if name in KEYWORDS}
    if words.no_digest:
        keywords["digests"] = False
    weights = {**(load_weights(words.coefficients) if words.coefficients else {}), **(words.weight or {})}
    return keywords | ({"weights": weights} if weights else {})
