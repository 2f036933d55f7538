"""Every example in a docstring or a page runs as it stands."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tapegrad
import tapegrad.kernels

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_in_modules():
    """Yield the doctests of the installed package, kernels included."""
    names = {"tapegrad"}
    for package in (tapegrad, tapegrad.kernels):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            names.add(found.name)
    for name in sorted(names):
        if not name.endswith("__main__"):
            yield from doctest.DocTestFinder().find(importlib.import_module(name))


def examples_in_pages():
    """Yield one doctest a page; the fences of its code blocks are blanked, as they end outputs."""
    for page in PAGES:
        text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        yield doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)


EXAMPLES = [found for found in (*examples_in_modules(), *examples_in_pages()) if found.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example):
    written = []
    results = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=written.append)
    assert results.failed == 0, "".join(written)


def test_the_readme_has_examples():
    assert "README.md" in {example.name for example in EXAMPLES}
