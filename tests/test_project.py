"""The project's own files agree with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tapegrad

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_installed(project):
    """Packages are listed by hand, because setuptools cannot find a folder under another name."""
    folders = {"tapegrad": "tapegrad", "kernels": "tapegrad.kernels"}
    packages = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(packages)


def test_the_readme_gives_two_commands():
    """`.ci/run` runs them as they stand: the first runs the main job, the second the tests."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    assert all(block.count("\n") == 1 for block in blocks)
    assert "examples/nist_regression.py" in blocks[0]
    assert ".[test]" in blocks[1]
    assert "pytest" in blocks[1]


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    missing = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_tests_run_the_installed_package():
    """`tests/conftest.py` keeps the checkout, which has no tapegrad.kernels, off the path."""
    assert ROOT not in {Path(entry).resolve() for entry in sys.path}


def test_every_public_name_is_there_and_rarely_used_modules_come_later():
    code = (
        "import sys, tapegrad as tg\n"
        "early = [name for name in ('numba', 'scipy', 'tapegrad.sparse.sparsity',"
        " 'tapegrad.programs.files', 'tapegrad.programs.program', 'tapegrad.batches.vmap')"
        " if name in sys.modules]\n"
        "assert set(tg.__all__) <= set(dir(tg))\n"
        "for name in tg.__all__: getattr(tg, name)\n"
        "assert callable(tg.checkpoint) and callable(tg.function) and callable(tg.progress)\n"
        "print(early)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no_such_name"):
        tapegrad.no_such_name  # noqa: B018
