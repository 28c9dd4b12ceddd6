"""Writes what docs say about methods and commands from the code itself; `--check` fails where a page is stale.

python docs/generate.py [--check]
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from taskmerge.cli.catalogue import markdown_tables, page
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.methods.registry import methods

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "merge", "adapt", "vectors", "eval", "spectrum", "report", "methods", "suites", "schema", "inspect", "diff",
    "doctor", "recover", "verify",
)  # fmt: skip
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"


def methods_page() -> str:
    """docs/methods.md."""
    parts = [
        "# Methods",
        "",
        "Written from the code by `make docs`; `taskmerge methods NAME` prints the same.",
        "",
        markdown_tables(),
    ]
    for method in [*methods().values(), *adaptive_methods().values()]:
        parts += ["", f"## {method.name}", "", "```text", page(method), "```"]
    return "\n".join(parts) + "\n"


def cli_page() -> str:
    """docs/cli.md: every command's help, 100 columns wide."""
    parts = ["# Commands", "", "Written from the program by `make docs`."]
    for command in COMMANDS:
        parts += ["", f"## taskmerge {command}", "", "```text", help_text(command), "```"]
    return "\n".join(parts) + "\n"


def help_text(command: str) -> str:
    """The plain help page of a command."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)
    environment.pop("GITHUB_ACTIONS", None)
    done = subprocess.run(
        [sys.executable, "-m", "taskmerge", command, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def readme() -> str:
    """README.md with its tables of methods written anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(
        f"{BEGIN}.*{END}", f"{BEGIN}\n{markdown_tables()}\n{END}".replace("\\", "\\\\"), text, flags=re.DOTALL
    )


def main() -> None:
    pages = {"docs/methods.md": methods_page(), "docs/cli.md": cli_page(), "README.md": readme()}
    stale = []
    for name, text in pages.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run `make docs`")
    print(f"written: {', '.join(stale)}" if stale else "docs are up to date")


if __name__ == "__main__":
    main()
