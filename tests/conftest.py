"""What every test shares: the installed package, and how hypothesis searches."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Tests exercise the installed package. The checkout's tapegrad/ alone is not one: tapegrad.kernels
# is the folder kernels/, which only an installation puts in its place. `python -m pytest` adds the
# current folder to the path, and a Python process started by a test would too.
_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != _ROOT]
os.environ["PYTHONSAFEPATH"] = "1"

# No deadlines: whichever example comes first may compile kernels. By default hypothesis repeats the
# same examples, so that a failure is reproducible; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=["written out", "structural"])
def products(request, monkeypatch):
    """Record small products of matrices as scalar instructions, and as those of the host."""
    if request.param == "structural":
        monkeypatch.setattr("tapegrad.matmul._written", lambda x, y: None)
