"""The shared laws over every registered method; new methods are covered as they are registered."""

import re

import pytest

from taskmerge.methods.contract import Method
from taskmerge.methods.registry import methods
from taskmerge.testing import Law, laws_of

EVERY = list(methods().values())


@pytest.mark.parametrize(
    ("method", "law"),
    [pytest.param(method, law, id=f"{method.name}-{law.__name__}") for method in EVERY for law in laws_of(method)],
)
def test_every_method_obeys(method: Method, law: Law) -> None:
    law(method)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_a_paper_is_named_as_the_docs_link_it(method: Method) -> None:
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\d{4,}/\S+", method.paper)
    assert method.title[0].isupper()


def test_no_name_means_two_methods() -> None:
    names = [name for method in EVERY for name in (method.name, *method.aliases)]
    assert len(names) == len(set(names))
