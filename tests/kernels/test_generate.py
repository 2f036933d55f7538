"""The generated files are those that the rows give, and the generator says so when they are not."""

from __future__ import annotations

import ast
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad import execute
from tapegrad.kernels import emit, generate, native, opcodes
from tapegrad.kernels.cpu.building import build
from tapegrad.kernels.emit.language import contribution, fit, guarded
from tapegrad.kernels.emit.library import preamble
from tapegrad.kernels.emit.numbering import number
from tapegrad.kernels.opcodes import CARRY, INPUT, LANES
from tapegrad.ops import TABLE
from tapegrad.ops.row import op, parse


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
        ("1 / y", "w / y"),
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


def test_an_operation_is_one_row_and_nothing_else(tmp_path: Path) -> None:
    """A new row, of three operands and with temporaries, runs in every executor there is."""
    row = op(
        "blend",
        "x y z",
        out="expit(x) * y + expit(-x) * z",
        let={"p": "expit(x)"},
        dx="p * expit(-x) * (y - z)",
        dy="p",
        dz="expit(-x)",
        samples=((1, 2, 3), (-1, -2, -3), (0.0, 0.0, 0.0), (-0.0, -0.0, -0.0)),
        doc="Blend of two numbers.",
    )
    table = {"blend": row, "add": TABLE["add"]}
    numbered = number(table)
    x, y, z, w = 0.3, 2.0, 5.0, 1.5
    p = 1.0 / (1.0 + math.exp(-x))
    value, partials = p * y + (1.0 - p) * z, np.array([p * (1.0 - p) * (y - z), p, 1.0 - p])
    blend = numbered[0].number

    rules = load(tmp_path / "generated_rules.py", emit.rules.emit(table, numbered))
    assert rules.FORWARD[blend](x, y, z) == pytest.approx(value)
    assert rules.CONTRIBUTIONS[blend](w, x, y, z, value) == pytest.approx(w * partials)
    assert rules.TANGENTS[blend](x, y, z, value, 1.0, 0.0, 2.0) == pytest.approx(
        partials[0] + 2.0 * partials[2]
    )

    scalar = load(tmp_path / "generated_scalar.py", emit.scalar.emit(table, numbered))
    op_, a, b = np.uint8([INPUT, CARRY, blend]), np.uint32([0, 0, 1]), np.uint32([3, 0, 2])
    v, g, k = np.array([x, y, z, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.0, w]), np.zeros(1)
    kernels = compiled("scalar", scalar)
    execute.at_addresses(kernels["forward"], 5)(op_, a, b, k, v, 0, 3, 0)
    execute.at_addresses(kernels["reverse"], 6)(op_, a, b, k, v, g, 3, 0, 5, False)
    assert v[4] == pytest.approx(value)
    assert g[:3] == pytest.approx(w * partials)

    lanes = load(tmp_path / "generated_lanes.py", emit.lanes.emit(table, numbered))
    op_, a, b = np.uint8([INPUT, LANES]), np.uint32([0, 0]), np.uint32([3, 1])
    d = np.array([blend, 0, 0, 0, 0, 1, 0, 2])
    v, g, places = np.array([x, y, z, 0.0]), np.array([0.0, 0.0, 0.0, w]), np.uint32([0])
    kernels = compiled("lanes", lanes)
    execute.at_addresses(kernels["forward"], 7)(op_, a, b, d, places, k, v, 1, 2, 3, 0, 100)
    back = execute.at_addresses(kernels["reverse"], 8)
    back(op_, a, b, d, places, k, v, g, 2, 1, 4, -1, 100, False)
    assert v[3] == pytest.approx(value)
    assert g[:3] == pytest.approx(w * partials)


def compiled(name: str, module: Any) -> Any:
    """Return the kernels of a module that stands in the place of a library's."""
    if not native.by_library():
        return module.compile_all()
    return native.link(native.LIBRARIES[name], build(native.LIBRARIES[name], vars(module)))


def load(path: Path, text: str) -> Any:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_opcodes_imports_nothing() -> None:
    path = Path(opcodes.__file__)
    imports = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ImportFrom)]
    assert [n.module for n in imports] == ["__future__"]


def test_the_reference_does_not_import_numba() -> None:
    code = "import sys, tapegrad.kernels.reference; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
