"""Markdown: a reader of it (markdown-it, with tables and links of its own making) shows every name as it is."""

import re
from html import unescape

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from page_cases import HOSTILE, hostile, small
from taskmerge.errors import plain
from taskmerge.reports import markdown
from taskmerge.reports.sections import Page, Prose, Section
from taskmerge.reports.tables import Cell, Table

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(source: str) -> str:
    """What a reader sees, tags taken away."""
    return unescape(re.sub(r"<[^>]*>", "\n", READER.render(source)))


def test_hostile_names_are_text() -> None:
    source = hostile().markdown()
    rendered = READER.render(source)
    assert not re.search(r"<(script|svg|a|em|code|del)\b", rendered)
    assert set(re.findall(r'<img src="([^"]*)"', rendered)) == {f"figures/{name}.svg" for name in hostile().plots}, (
        "pictures are those of the page"
    )
    for name in HOSTILE:
        assert plain(name).strip() in shown(source)


def test_what_readers_make_links_of_is_broken_up() -> None:
    source = markdown.text("http://example.com www.example.com a@example.com")
    assert not re.search(r"\w://|www\.|\w@", source)
    assert shown(source).strip() == "http://example.com www.example.com a@example.com"


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_any_name_comes_back(name: str) -> None:
    wanted = " ".join(plain(name.replace("\n", " ")).split())
    table = Table("title", "corner", ("column",), (f"x{name}x",), ((Cell(f"x{name}x"),),))
    found = [" ".join(line.split()) for line in shown(markdown.table(table)).split("\n")]
    expected = " ".join(f"x{plain(name.replace(chr(10), ' '))}x".split())
    assert found.count(expected) == 2
    page = Page("title", (Section("section", "anchor", name, (Prose(name),)),))
    words = " ".join(shown(markdown.page(page, {})).split())
    assert words == f"title section {wanted} {wanted}".strip() or not wanted


def test_a_page_has_its_answer_first_and_a_picture_for_each_plot() -> None:
    source = small().markdown()
    assert source.startswith("# Evaluation: scores\n\n## In short\n\n")
    assert source.count("![") == len(small().plots)
    assert source.endswith("\n")
    assert not source.endswith("\n\n")
