"""The methods as people read them: one table, or one method's page."""

import inspect

from taskmerge.cli.show import document, folded, notices, print_table
from taskmerge.methods.contract import Method
from taskmerge.methods.registry import find, methods, problems
from taskmerge.specs.merge import plain_value

SPACES = {"weight": "no", "centred": "no", "delta": "yes"}


def show(name: str | None, json: bool, markdown: bool) -> None:
    """Prints what was asked for on stdout."""
    notices((), problems(), quiet=False)
    if name is not None:
        document(described(find(name))) if json else print(folded(page(find(name))))
    elif json:
        document([described(one) for one in methods().values()])
    elif markdown:
        print(markdown_table())
    else:
        _print_table()


def described(one: Method) -> dict[str, object]:
    """A method's declaration as plain values."""
    return {
        "name": one.name,
        "title": one.title,
        "summary": one.summary,
        "formula": one.formula,
        "paper": one.paper,
        "needs_base": one.needs_base,
        "space": one.space,
        "weights": one.weighted,
        "random": one.random,
        "options": [
            {
                "name": setting.flag,
                "help": setting.option.help,
                "allowed": setting.range,
                "default": plain_value(setting.default),
                "understood": setting.understood(setting.default),
            }
            for setting in one.settings.values()
        ],
        "notes": list(one.notes),
    }


def page(one: Method) -> str:
    """One method: paper, formula, needs, options with ranges and defaults, notes."""
    paragraphs = (inspect.getdoc(one.kernel) or "").strip().split("\n\n")
    lines = [f"{one.name}: {one.title}", "", f"  {one.formula}", ""]
    lines += [line for part in paragraphs for line in (" ".join(part.split()), "")]
    lines += [
        f"paper: {one.paper}",
        f"needs a base: {SPACES[one.space]}",
        f"takes --weight: {'yes' if one.weighted else 'no'}",
    ]
    if one.settings:
        lines += ["", "options:"]
        for setting in one.settings.values():
            default = setting.understood(setting.default)
            lines += [f"  {setting.flag}  ({setting.range}; default {default})", f"      {setting.option.help}"]
    if one.gives == "task_vectors":
        theirs = ", ".join(f"--then-{name.replace('_', '-')}" for name in _shared(one))
        lines += [
            "  and all options of the METHOD in `--then METHOD`; where both have one, METHOD's is said as",
            f"      {theirs}",
        ]
    if one.notes:
        lines += ["", "notes:", *(f"  - {note}" for note in one.notes)]
    return "\n".join(lines)


def _shared(first: Method) -> list[str]:
    """The options of a method that some method after it has too."""
    after = [one for one in methods().values() if one.gives == "merged" and one.space == "delta"]
    return [name for name in first.settings if any(name in one.settings for one in after)]


def markdown_table() -> str:
    """The table of README.md and docs/methods.md."""
    rows = [
        "| method | what it does | formula | base | options (default) | paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in methods().values():
        options = ", ".join(f"`{s.flag}` {s.understood(s.default)}" for s in one.settings.values()) or "–"
        formula = one.formula.replace("|", "\\|")
        rows.append(
            f"| `{one.name}` | {one.summary} | {formula} | {SPACES[one.space]} | {options} | {paper_link(one.paper)} |"
        )
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
    for one in methods().values():
        table.add_row(one.name, SPACES[one.space], one.summary)
    print_table(table)
    print("\n`taskmerge methods NAME` prints formula, options and notes of one.")
