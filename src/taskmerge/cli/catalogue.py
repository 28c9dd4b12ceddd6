"""The methods as people read them: two tables, of those that need no data and of those that adapt, or one's page."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence

from taskmerge.cli import adaptive_catalogue as adapting
from taskmerge.cli.show import document, folded, notices, print_table
from taskmerge.errors import TaskmergeError, unknown_name
from taskmerge.methods.adaptive import Adaptive
from taskmerge.methods.adaptive_registry import adaptive_methods, find_adaptive
from taskmerge.methods.contract import Method
from taskmerge.methods.listing import plain_name
from taskmerge.methods.options import Setting
from taskmerge.methods.registry import find, methods, problems
from taskmerge.specs.merge import plain_value

SPACES = {"weight": "no", "centred": "no", "delta": "yes"}
FREE = "need no data: `taskmerge merge --method NAME`"
ADAPT = "adapt on unlabelled items of a suite: `taskmerge adapt --method NAME`"


def show(name: str | None, *, json: bool, markdown: bool) -> None:
    """Prints what was asked for on stdout."""
    notices((), problems(), quiet=False)
    if name is not None:
        method = named(name)
        document(described(method)) if json else print(folded(page(method)))
    elif json:
        every: dict[str, Method | Adaptive] = {**methods(), **adaptive_methods()}
        document([described(every[name]) for name in sorted(every)])
    elif markdown:
        print(markdown_tables())
    else:
        _print_tables()


def named(name: str) -> Method | Adaptive:
    """A method of either kind by name. Raises UsageError with the nearest of both."""
    key = plain_name(name)
    if key in adaptive_methods() or any(key in method.aliases for method in adaptive_methods().values()):
        return find_adaptive(name, where="methods")
    try:
        return find(name, where="methods")
    except TaskmergeError as error:
        if error.hint is None or not error.hint.startswith(("did you mean", "known:")):
            raise  # a plug-in that fails, or a name of other tools
        raise unknown_name("method", name, {**methods(), **adaptive_methods()}, where="methods") from None


def described(method: Method | Adaptive) -> dict[str, object]:
    """A method's declaration as plain values."""
    own = adapting.described(method) if isinstance(method, Adaptive) else _described(method)
    options = [
        {
            "name": setting.flag,
            "help": setting.option.help,
            "allowed": setting.range,
            "default": plain_value(setting.default),
            "understood": setting.understood(setting.default),
        }
        for setting in method.settings.values()
    ]
    return {**own, "options": options, "notes": list(method.notes)}


def _described(method: Method) -> dict[str, object]:
    return {
        "name": method.name,
        "command": "merge",
        "title": method.title,
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper,
        "needs_base": method.needs_base,
        "space": method.space,
        "weights": method.weighted,
        "random": method.random,
    }


def page(method: Method | Adaptive) -> str:
    """One method: paper, formula, needs, options with ranges and defaults, notes."""
    lines = adapting.page_lines(method) if isinstance(method, Adaptive) else _page_lines(method)
    if method.settings:
        lines += ["", "options:"]
        for setting in method.settings.values():
            default = setting.understood(setting.default)
            lines += [f"  {setting.flag}  ({setting.range}; default {default})", f"      {setting.option.help}"]
    if isinstance(method, Method) and method.gives == "task_vectors":
        theirs = ", ".join(f"--then-{name.replace('_', '-')}" for name in _shared(method))
        lines += [
            "  and all options of the METHOD in `--then METHOD`; where both have one, METHOD's is said as",
            f"      {theirs}",
        ]
    if method.notes:
        lines += ["", "notes:", *(f"  - {note}" for note in method.notes)]
    return "\n".join(lines)


def _page_lines(method: Method) -> list[str]:
    """A page's part before options and notes."""
    paragraphs = (inspect.getdoc(method.kernel) or "").strip().split("\n\n")
    lines = [f"{method.name}: {method.title}", "", f"  {method.formula}", ""]
    lines += [line for part in paragraphs for line in (" ".join(part.split()), "")]
    return [
        *lines,
        f"paper: {method.paper}",
        f"needs a base: {SPACES[method.space]}",
        f"takes --weight: {'yes' if method.weighted else 'no'}",
    ]


def _shared(first: Method) -> list[str]:
    """The options of a method that some method after it has too."""
    after = [method for method in methods().values() if method.gives == "merged" and method.space == "delta"]
    return [name for name in first.settings if any(name in method.settings for method in after)]


def markdown_tables() -> str:
    """Both tables of README.md and docs/methods.md."""
    free = _markdown(
        ("method", "what it does", "formula", "base", "options (default)", "paper"),
        ((method, (SPACES[method.space],)) for method in methods().values()),
    )
    adapt = _markdown(
        ("method", "what it does", "formula", "learns", "objective", "updates", "options (default)", "paper"),
        ((method, adapting.cells(method)) for method in adaptive_methods().values()),
    )
    return "\n".join([f"These {FREE}.", "", *free, "", f"These {ADAPT}.", "", *adapt])


def _markdown(titles: Sequence[str], rows: Iterable[tuple[Method | Adaptive, Sequence[str]]]) -> Iterator[str]:
    """A table's lines: name, summary and formula of each method, its own cells, options and paper."""
    yield f"| {' | '.join(titles)} |"
    yield f"| {' | '.join('---' for _ in titles)} |"
    for method, own in rows:
        formula, paper = method.formula.replace("|", "\\|"), paper_link(method.paper)
        if isinstance(method, Adaptive) and method.unpublished:
            paper = f"{adapting.UNPUBLISHED}; see {paper}"
        cells = (f"`{method.name}`", method.summary, formula, *own, _options(method.settings), paper)
        yield f"| {' | '.join(cells)} |"


def _options(settings: Mapping[str, Setting]) -> str:
    return ", ".join(f"`{own.flag}` {own.understood(own.default)}" for own in settings.values()) or "–"


def paper_link(paper: str) -> str:
    """A Markdown link to a paper that is named by its arXiv number or DOI."""
    kind, _, number = paper.partition(":")
    hosts = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    return f"[{paper}]({hosts[kind]}{number})" if kind in hosts else paper


def _print_tables() -> None:
    free = [(method.name, SPACES[method.space], method.summary) for method in methods().values()]
    adapt = [(method.name, ", ".join(adapting.parts_of(method).learns), method.summary)
             for method in adaptive_methods().values()]  # fmt: skip
    print(f"These {FREE}\n")
    _print_table(("method", "base", "what it does"), free)
    print(f"\nThese {ADAPT}\n")
    _print_table(("method", "learns", "what it does"), adapt)
    print("\n`taskmerge methods NAME` prints formula, options and notes of one.")


def _print_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(title, no_wrap=place == 0)
    for row in rows:
        table.add_row(*row)
    print_table(table)
