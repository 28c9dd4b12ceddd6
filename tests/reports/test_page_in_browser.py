"""The page in a browser: sorts, shows values, changes its theme, asks nobody for anything, fits a phone."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from page_cases import HOSTILE, hostile, small
from taskmerge.errors import plain
from taskmerge.reports.files import Rendered

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page, and what it has asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a rendered page from its file; at the end nothing may have been requested or complained about."""
    every: list[tuple[Opened, Any]] = []

    def open_page(made: Rendered, *, width: int = 1280, scheme: str = "light") -> Any:
        file = tmp_path / f"page-{len(every)}.html"
        file.write_text(made.html(), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 760}, color_scheme=scheme)
        found = Opened(context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(file.as_uri())
        every.append((found, context))
        return found.page

    yield open_page
    for found, context in every:
        assert set(found.requests) == {found.page.url.partition("#")[0]}
        assert found.complaints == []
        context.close()


def column(page: Any, place: int) -> list[str]:
    """The first line of every cell of a column of the answer's table."""
    script = "(rows, place) => rows.map((row) => row.cells[place].firstChild.textContent)"
    texts: list[str] = page.locator("#answer tbody tr").evaluate_all(script, place)
    return texts


def test_a_click_sorts_and_says_so(opened: Any) -> None:
    page = opened(small())
    head = page.locator("#answer thead th").nth(1)
    before = column(page, 1)
    for order, wanted in (
        ("descending", sorted(before, key=float, reverse=True)),
        ("ascending", sorted(before, key=float)),
        ("none", before),
    ):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(page, 1) == wanted
    page.locator("#answer thead th").first.get_by_role("button").click()
    assert column(page, 0) == sorted(before_names := column(page, 0))
    assert len(set(before_names)) == len(before)
    assert "ascending" in page.locator("#said").text_content()


def test_the_keyboard_sorts_and_what_is_not_known_stays_last(opened: Any) -> None:
    page = opened(small())
    table = page.locator("#answer table")
    table.evaluate("(own) => { own.tBodies[0].rows[0].cells[1].firstChild.textContent = '–'; }")
    button = table.locator("thead th").nth(1).get_by_role("button")
    for _ in range(2):
        button.focus()
        page.keyboard.press("Enter")
        assert column(page, 1)[-1] == "–"
    page.keyboard.press("Space")
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "none"


def test_the_pointer_and_the_arrow_keys_show_values(opened: Any) -> None:
    page = opened(small())
    tip, plot = page.locator("#tip"), page.locator("#figure-means .plot")
    assert tip.is_hidden()
    mark = page.locator("#figure-means svg.wide [data-t]").last
    mark.scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # a page that scrolls shows no values, and says so a moment later
    mark.hover()
    assert tip.is_visible()
    assert tip.text_content().replace("\n", "; ") == mark.get_attribute("data-t")
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    plot.focus()
    page.keyboard.press("End")
    assert tip.text_content().replace("\n", "; ") == mark.get_attribute("data-t")
    assert page.locator("#said").text_content() == mark.get_attribute("data-t")
    page.keyboard.press("ArrowRight")
    first = page.locator("#figure-means svg.wide [data-t]").first.get_attribute("data-t")
    assert page.locator("#said").text_content() == first
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_readers_and_can_be_changed(opened: Any, scheme: str) -> None:
    page = opened(small(), scheme=scheme)
    paper = "() => getComputedStyle(document.body).backgroundColor"
    ink = "() => getComputedStyle(document.querySelector('svg text')).fill"
    first = page.evaluate(paper), page.evaluate(ink)
    assert (first[0] == "rgb(255, 255, 255)") == (scheme == "light")
    button = page.locator("#theme")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    second = page.evaluate(paper), page.evaluate(ink)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert button.get_attribute("aria-pressed") == str(scheme != "dark").lower()
    page.reload()
    assert (page.evaluate(paper), page.evaluate(ink)) == second, "the choice is kept"
    page.locator("#theme").click()
    assert (page.evaluate(paper), page.evaluate(ink)) == first


@pytest.mark.parametrize("made", [small, hostile])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(opened: Any, width: int, made: Any) -> None:
    page = opened(made(), width=width)
    for own in page.locator("details").all():
        own.evaluate("(one) => { one.open = true; }")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.locator("#figure-means svg.narrow").is_visible() == (width == 360)
    assert page.locator("#figure-means svg.wide").is_visible() == (width > 360)
    if width == 360:
        sizes = page.locator("#figure-means svg.narrow text").evaluate_all(
            "(texts) => texts.map((one) => one.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 9, "labels stay readable"


def test_labels_of_a_plot_stay_inside_of_it(opened: Any) -> None:
    page = opened(small())
    script = """(svgs) => svgs.filter((svg) => svg.getClientRects().length).flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter((text) => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 2 || own.right > box.right + 2;
        }).map((text) => text.textContent);
    })"""
    assert page.locator("svg").evaluate_all(script) == []


def test_the_keyboard_reaches_the_answer_first_and_everything_after(opened: Any) -> None:
    page = opened(small())
    page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    assert skip.evaluate("(one) => one === document.activeElement")
    assert skip.evaluate("(one) => one.getBoundingClientRect().left") >= 0, "it is seen where it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.className || document.activeElement.tagName"))
    assert {"BUTTON", "plot", "SUMMARY"} <= reached


def test_it_says_its_structure_to_a_screen_reader(opened: Any) -> None:
    page = opened(small())
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    for name in ("In short", "Scores by task"):
        assert page.get_by_role("region", name=name, exact=True).count() == 1
        assert page.get_by_role("heading", name=name, exact=True, level=2).count() == 1
    assert page.get_by_role("img", name="Mean over the tasks").count() == 1, "the one that is shown"
    assert page.get_by_role("table", name="Checkpoints, best first").count() == 1


def test_it_says_all_without_scripts(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(small().html(), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("#figure-means svg.wide").is_visible()
    assert page.locator("#answer table").is_visible()
    assert page.locator("#theme").is_hidden(), "no button that does nothing"
    context.close()


def test_the_policy_stops_whatever_would_ask(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(small().html(), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    tried = """async () => {
        const image = document.createElement('img');
        image.src = 'http://127.0.0.1:9/x.png';
        document.body.append(image);
        try { await fetch('http://127.0.0.1:9/x'); return 'asked'; } catch { return 'refused'; }
    }"""
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    assert page.evaluate(tried) == "refused"
    page.wait_for_timeout(100)
    assert sum("Content Security Policy" in one for one in refused) >= 2
    context.close()


def test_hostile_names_are_shown(opened: Any) -> None:
    page = opened(hostile())
    assert page.title() == f"Evaluation: {plain(HOSTILE[0])}"
    names = page.locator("#answer tbody th").all_text_contents()
    assert {plain(name) for name in HOSTILE} <= set(names)
    assert page.locator("img, iframe, object, embed, main script").count() == 0
    mark = page.locator("#figure-scores svg.wide path[data-t]").first
    mark.hover()
    assert page.locator("#tip").locator("*").count() == 0, "text alone"
    page.locator("#answer thead th").first.get_by_role("button").click()
    assert {plain(name) for name in HOSTILE} <= set(page.locator("#answer tbody th").all_text_contents())
