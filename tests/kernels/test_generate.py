"""The generated files are those that the rows give, and the generator says so when they are not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tapegrad.kernels import generate, opcodes
from tapegrad.kernels.emit.language import contribution, fit, guarded
from tapegrad.kernels.emit.library import preamble
from tapegrad.kernels.emit.numbering import number
from tapegrad.ops import TABLE
from tapegrad.ops.row import parse


def test_committed_files_are_fresh() -> None:
    assert generate.main(["--check"]) == 0


def test_stale_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, missing = tmp_path / "stale.py", tmp_path / "missing.py"
    stale.write_text("old")
    monkeypatch.setattr(generate, "outputs", lambda: {stale: "new", missing: "text"})
    assert generate.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert str(stale) in said
    assert str(missing) in said
    assert stale.read_text() == "old"
    assert generate.main([]) == 0
    assert (stale.read_text(), missing.read_text()) == ("new", "text")
    assert generate.main(["--check"]) == 0


def test_opcodes_are_consistent() -> None:
    assert list(opcodes.ROWS) == list(TABLE)
    for name, numbers in opcodes.ROWS.items():
        for opcode in numbers:
            if opcode >= 0:
                assert opcodes.ROW_OF[opcode] == name
                assert getattr(opcodes, opcodes.NAMES[opcode]) == opcode
    assert len(opcodes.NAMES) == len(opcodes.ROW_OF) == len(opcodes.KINDS) <= 256


def test_a_table_beyond_a_byte_is_refused() -> None:
    row = TABLE["sin"]
    with pytest.raises(ValueError, match="fit a byte"):
        number({str(i): row for i in range(252)})


@pytest.mark.parametrize(
    ("partial", "want"),
    [
        ("0", "0.0"),
        ("1", "w"),
        ("-1", "-w"),
        ("y", "w * y"),
        ("-sin(x)", "-(w * sin(x))"),
        ("1 / y", "w * (1 / y)"),
        ("0 if x > 0.0 else -1", "0.0 if x > 0.0 else -w"),
    ],
)
def test_contributions(partial: str, want: str) -> None:
    assert ast.unparse(contribution(parse(partial))) == want


def test_python_is_kept_from_raising() -> None:
    assert guarded(parse("x / (y ** 2 / 3)")) == "divide(x, power(y, 2) / 3)"


def test_long_lines_are_broken() -> None:
    text = " + ".join(["number"] * 10)
    assert fit("    v = x") == ["    v = x"]
    assert fit(f"{' ' * 20}v += {text}")[0] == " " * 20 + "v += ("
    with pytest.raises(ValueError, match="cannot break"):
        fit("x" * 101)


def test_a_function_that_nobody_wrote_is_named() -> None:
    with pytest.raises(ValueError, match=r"no function \['zeta'\]; write it in"):
        preamble({"sin", "zeta"})


def test_the_table_of_opcodes_imports_nothing() -> None:
    path = Path(opcodes.__file__)
    imports = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)]
    assert [n.module for n in imports] == ["__future__"]


def test_the_reference_does_not_import_numba() -> None:
    code = "import sys, tapegrad.kernels.reference; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
