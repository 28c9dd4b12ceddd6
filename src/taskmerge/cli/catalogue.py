"""The methods as people read them: one table, or one method's page."""

import inspect

from taskmerge.cli.show import document, folded, notices, print_table
from taskmerge.methods.contract import Method
from taskmerge.methods.registry import find, methods, problems
from taskmerge.specs.merge import plain_value

SPACES = {"weight": "no", "centred": "no", "delta": "yes"}


def show(name: str | None, *, json: bool, markdown: bool) -> None:
    """Prints what was asked for on stdout."""
    notices((), problems(), quiet=False)
    if name is not None:
        document(described(find(name))) if json else print(folded(page(find(name))))
    elif json:
        document([described(method) for method in methods().values()])
    elif markdown:
        print(markdown_table())
    else:
        _print_table()


def described(method: Method) -> dict[str, object]:
    """A method's declaration as plain values."""
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper,
        "needs_base": method.needs_base,
        "space": method.space,
        "weights": method.weighted,
        "random": method.random,
        "options": [
            {
                "name": setting.flag,
                "help": setting.option.help,
                "allowed": setting.range,
                "default": plain_value(setting.default),
                "understood": setting.understood(setting.default),
            }
            for setting in method.settings.values()
        ],
        "notes": list(method.notes),
    }


def page(method: Method) -> str:
    """One method: paper, formula, needs, options with ranges and defaults, notes."""
    paragraphs = (inspect.getdoc(method.kernel) or "").strip().split("\n\n")
    lines = [f"{method.name}: {method.title}", "", f"  {method.formula}", ""]
    lines += [line for part in paragraphs for line in (" ".join(part.split()), "")]
    lines += [
        f"paper: {method.paper}",
        f"needs a base: {SPACES[method.space]}",
        f"takes --weight: {'yes' if method.weighted else 'no'}",
    ]
    if method.settings:
        lines += ["", "options:"]
        for setting in method.settings.values():
            default = setting.understood(setting.default)
            lines += [f"  {setting.flag}  ({setting.range}; default {default})", f"      {setting.option.help}"]
    if method.gives == "task_vectors":
        theirs = ", ".join(f"--then-{name.replace('_', '-')}" for name in _shared(method))
        lines += [
            "  and all options of the METHOD in `--then METHOD`; where both have one, METHOD's is said as",
            f"      {theirs}",
        ]
    if method.notes:
        lines += ["", "notes:", *(f"  - {note}" for note in method.notes)]
    return "\n".join(lines)


def _shared(first: Method) -> list[str]:
    """The options of a method that some method after it has too."""
    after = [method for method in methods().values() if method.gives == "merged" and method.space == "delta"]
    return [name for name in first.settings if any(name in method.settings for method in after)]


def markdown_table() -> str:
    """The table of README.md and docs/methods.md."""
    rows = [
        "| method | what it does | formula | base | options (default) | paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in methods().values():
        options = ", ".join(f"`{s.flag}` {s.understood(s.default)}" for s in method.settings.values()) or "–"
        formula, base = method.formula.replace("|", "\\|"), SPACES[method.space]
        cells = (f"`{method.name}`", method.summary, formula, base, options, paper_link(method.paper))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def paper_link(paper: str) -> str:
    """A Markdown link to a paper that is named by its arXiv number or DOI."""
    kind, _, number = paper.partition(":")
    hosts = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    return f"[{paper}]({hosts[kind]}{number})" if kind in hosts else paper


def _print_table() -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("base")
    table.add_column("what it does")
    for method in methods().values():
        table.add_row(method.name, SPACES[method.space], method.summary)
    print_table(table)
    print("\n`taskmerge methods NAME` prints formula, options and notes of one.")
