"""The page as a document: whole, self-contained, accessible, the same bytes each time, and every name as text."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from page_cases import HOSTILE, eval_run, hostile, small
from report_cases import report
from taskmerge.errors import plain
from taskmerge.reports.files import rendered
from taskmerge.reports.page import drawn_figures, html, text
from taskmerge.reports.pages import page_of
from taskmerge.reports.sections import Fact, Facts, Page, Prose, Section
from taskmerge.reports.svg import ELEMENTS
from taskmerge.reports.tables import Cell, Table

LIMIT = 1_500_000
VOID = {"meta", "link", "br", "img", "input"}


class Reader(HTMLParser):
    """A document as its elements: (tag, attributes, text so far), and what was not closed in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_a_whole_document() -> None:
    found = Reader(small().html())
    assert found.open == []
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("h1")) == len(found.all("main")) == len(found.all("nav")) == len(found.all("footer")) == 1
    assert found.all("a")[0] == {"class": "skip", "href": "#main"}, "the first thing that the keyboard reaches"


def test_nothing_in_it_leads_out() -> None:
    document = small().html()
    found = Reader(document)
    for tag, attributes in found.elements:
        assert tag in {
            "html", "head", "meta", "title", "style", "body", "a", "header", "h1", "button", "nav", "ul", "li", "main",
            "section", "h2", "h3", "p", "dl", "div", "dt", "dd", "small", "table", "caption", "thead", "tbody", "tr",
            "th", "td", "figure", "figcaption", "details", "summary", "span", "strong", "code", "pre", "footer",
            "script", "svg", "g", "path", "line", "rect", "text", "tspan", "defs", "clippath", "lineargradient", "stop",
        }  # fmt: skip
        assert not any(name.startswith("on") or name in ("src", "style", "srcset", "action") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "http" not in re.sub(r"<script>.*?</script>", "", document, flags=re.DOTALL).replace("http-equiv", "")


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else() -> None:
    document = small().html()
    policy = next(own["content"] for own in Reader(document).all("meta") if "http-equiv" in own)
    digests = {}
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        digests[tag] = f"'sha256-{digest}'"
    assert policy == (
        f"default-src 'none'; style-src {digests['style']}; script-src {digests['script']}; "
        "base-uri 'none'; form-action 'none'"
    )


def test_ids_are_unique_and_what_refers_to_them_finds_them() -> None:
    for page in (small(), rendered(page_of([eval_run(report(), "one"), eval_run(report(seed=1), "two")]))):
        found = Reader(page.html())
        ids = [own["id"] for _, own in found.elements if "id" in own]
        assert len(set(ids)) == len(ids)
        for _, own in found.elements:
            for name in ("aria-labelledby", "aria-describedby"):
                assert set((own.get(name) or "").split()) <= set(ids)
            if (own.get("href") or "#") != "#":
                assert str(own["href"])[1:] in ids
        used = re.findall(r"url\(#([^)]*)\)", page.html())
        assert set(used) <= set(ids)


def test_every_plot_has_a_text_and_its_numbers() -> None:
    page = small()
    document = page.html()
    for figure in page.page.figures():
        start = document.index(f'<figure id="figure-{figure.name}"')
        own = document[start : document.index("</figure>", start)]
        assert text(figure.alternative) in own
        assert own.count('role="img"') == 2, "one for wide pages, one for phones"
        assert "<table>" in own[own.index("<details>") :]
        assert figure.alternative
        assert figure.caption
    first = page.page.figures()[0]
    assert all(name in first.alternative for name in ("experts", "base", "one", "two"))


def test_tables_say_what_they_are_and_what_their_cells_belong_to() -> None:
    found = Reader(small().html())
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(own.get("scope") in ("col", "row") for own in found.all("th"))


def test_equal_reports_give_equal_bytes() -> None:
    pages = [rendered(page_of([eval_run(report(timing={"total": total}), "scores")])) for total in (1.0, 99.0)]
    first, second = (page.files() for page in pages)
    assert first == second, "times are no part of an evaluation's page"


def test_a_page_of_eight_tasks_is_small() -> None:
    tasks = {f"task {place}": "accuracy" for place in range(8)}
    found = report(tasks, ["merged", "other", "third"], cross=True, compare=True, corruptions=["blur"], n=30)
    assert len(rendered(page_of([eval_run(found)])).html().encode()) < LIMIT / 2


# --- names -----------------------------------------------------------------------------------------------------


def test_hostile_names_are_text() -> None:
    document = hostile().html()
    found = Reader(document)
    assert len(found.all("script")) == 1
    assert found.all("img") == []
    words = " ".join(found.words)
    for name in HOSTILE:
        assert plain(name) in words
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", document)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_text_comes_back_as_it_was_shown(name: str) -> None:
    table = Table(name, name, (name,), (name,), ((Cell(name, interval=name),),), (name,))
    parts = (Facts((Fact(name, name, name),)), Prose(name.replace("`", "'")), Prose(name, "code"), table)
    page = Page(name, (Section(name, name, name.replace("`", "'"), parts),))
    found = Reader(html(page, drawn_figures(page)))
    shown = plain(name)
    assert found.open == []
    assert found.words.count(shown) >= 8 or not shown.strip() or "&" in shown
    assert "".join(found.words).count(shown) >= 8


def test_plots_as_files_hold_names_as_text() -> None:
    files = hostile().files()
    drawings = [content for path, content in files.items() if path.endswith(".svg")]
    assert drawings
    for content in drawings:
        root = ElementTree.fromstring(content)  # well-formed, or it raises
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= ELEMENTS
        assert not any(key.startswith("on") or "href" in key for element in root.iter() for key in element.attrib)
    assert all(re.fullmatch(r"[\w./-]+", path) for path in files)
