"""Static SVG against inlined Vega: size of a report's page, and the time until Chromium shows its plots.

python benchmarks/report_page.py FOLDER… [--rounds 5]

Both pages hold the same text and tables; one has the plots as this project draws them, the other their specifications
and vl-convert's bundle of Vega, Vega-Lite and Vega-Embed, as `vegaEmbed` draws them (which needs scripts from text, so
no strict policy). Rounds are interleaved; medians are printed with their range.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from taskmerge.reports.files import Rendered, rendered
from taskmerge.reports.pages import page_of
from taskmerge.reports.reading import read_runs

READY = """() => document.querySelectorAll("figure").length
    === document.querySelectorAll("figure svg.wide, figure .vega-embed svg").length"""


def with_vega(made: Rendered) -> str:
    """The page with plots that are drawn where it is read."""
    import vl_convert

    document = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made.html())
    document = re.sub(r'<div class="plot">.*?</div>', '<div class="plot"></div>', document, flags=re.DOTALL)
    specs = json.dumps([figure.spec for figure in made.page.figures()], ensure_ascii=False).replace("<", "\\u003c")
    draw = (
        f"const specs = {specs};\n"
        "document.querySelectorAll('figure .plot').forEach((plot, place) => "
        "vegaEmbed(plot, specs[place], {renderer: 'svg', actions: false}));"
    )
    bundle = vl_convert.javascript_bundle()
    return document.replace("</body>", f"<script>{bundle}</script><script>{draw}</script></body>")


def opened(browser: Any, file: Path) -> float:
    """Seconds until every plot is there."""
    page = browser.new_context().new_page()
    began = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_function(READY)
    seconds = time.perf_counter() - began
    page.context.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    began = time.perf_counter()
    made = rendered(page_of(read_runs(asked.runs)))
    pages = {"static SVG": made.html(), "inlined Vega": with_vega(made)}
    print(f"{len(made.plots)} plots, drawn in {time.perf_counter() - began:.1f} s")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        files = {name: Path(folder) / f"{place}.html" for place, name in enumerate(pages)}
        for name, file in files.items():
            file.write_text(pages[name], encoding="utf-8")
        times: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(asked.rounds):
            for name, file in files.items():
                times[name].append(opened(browser, file))
        browser.close()
    for name, own in times.items():
        size = len(pages[name].encode()) / 1e6
        print(f"{name:13} {size:.3f} MB, {statistics.median(own):.2f} s ({min(own):.2f} to {max(own):.2f})")


if __name__ == "__main__":
    main()
