"""Vector functions are right to 2 units in the last place everywhere, and are packed instructions.

The reference is mpmath. Where an operand or the result is not finite, or the result is a zero whose
sign matters, it is NumPy or SciPy.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from tapegrad.kernels import coefficients, fit_polynomials, ulp
from tapegrad.kernels.emit import library

NAMES = tuple(case.name for case in ulp.CASES)
CASES = [pytest.param(case, id=case.name) for case in ulp.CASES]


@pytest.fixture(scope="module", params=[False, True], ids=["float64", "float32"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("driver")
    single = request.param
    return single, ulp.driver(NAMES, folder / f"vector_driver_{single}.py", single)


def test_every_function_is_measured() -> None:
    assert set(NAMES) == set(library.vector_names())


@pytest.mark.parametrize("case", CASES)
def test_errors_are_at_most_two_units(driver: Any, case: ulp.Case) -> None:
    single, module = driver
    greatest, where = ulp.worst(module, case, 30_000 if single else 1000, 7, single)
    assert greatest <= 2.0, f"{greatest} units at {where}"


@pytest.mark.parametrize("case", CASES)
def test_special_numbers(driver: Any, case: ulp.Case) -> None:
    single, module = driver
    x = ulp.specials(case, single)
    got = ulp.apply(module, case, x)
    with np.errstate(all="ignore"):
        want = ulp.other(case.other)(*x.astype(np.float64)).astype(x.dtype)
    finite = np.isfinite(x).all(axis=0) & np.isfinite(want) & (want != 0)
    if case.name == "arctan2":  # Angles of points on the axes depend on the sign of a zero.
        finite &= (x != 0).all(axis=0)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    zero = want == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))
    greatest = ulp.errors(case, x[:, finite], got[finite])
    assert greatest.max() <= 2.0, f"at {x[:, finite][:, greatest.argmax()]}"


@pytest.mark.parametrize("wanted", fit_polynomials.FITS, ids=lambda wanted: wanted.name)
def test_coefficients_are_as_good_as_they_say(wanted: fit_polynomials.Fit) -> None:
    """The error of the polynomial as committed, with coefficients rounded to floats."""
    evaluate = fit_polynomials.evaluate
    with mp.workdps(60):
        for x in mp.linspace(wanted.low, wanted.high, 37):
            exact, weight = wanted.function(x), wanted.weight(x)
            for suffix, precision in fit_polynomials.PRECISIONS.items():
                polynomial = getattr(coefficients, wanted.name + suffix)
                error = (evaluate(polynomial, x) - exact) * weight
                # Rounding to a float moves each term by at most half of its last place.
                terms = evaluate([abs(c) for c in polynomial], abs(x)) * weight * 2.0**-53
                assert abs(error) <= precision**wanted.power + terms


FEATURES = {
    "avx2": ("haswell", "+avx,+avx2,+fma,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2", "ymm"),
    "avx512": (
        "skylake-avx512",
        "+avx,+avx2,+fma,+avx512f,+avx512dq,+avx512bw,+avx512vl,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2",
        "[yz]mm",  # Compilers differ about 512 bits on this processor.
    ),
}
COMPILE = """
import sys
from pathlib import Path
from numba import njit
from tapegrad.kernels import ulp
module = ulp.driver(("exp", "log", "sin", "power"), Path(sys.argv[1]) / "packed_driver.py")
kernel = njit(error_model="numpy")(module.apply.py_func)
kernel.compile("void(int64, int64, int64, int64, int64)")
print("\\n".join(kernel.inspect_asm().values()))
"""


WITHOUT_FMA = """
import sys
from pathlib import Path
from tapegrad.kernels import ulp
names = ("arctan2", "power", "sin", "sinh")
module = ulp.driver(names, Path(sys.argv[1]) / "plain_driver.py")
print(max(ulp.worst(module, case, 1000)[0] for case in ulp.CASES if case.name in names))
print("vfmadd" in "".join(module.apply.inspect_asm().values()))
"""
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="for x86 processors")


def run(code: str, folder: Path, processor: str, features: str) -> str:
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


@X86
def test_errors_without_fused_multiplication(tmp_path: Path) -> None:
    greatest, fused = run(WITHOUT_FMA, tmp_path, "nehalem", "+sse4.2").split()
    assert fused == "False"
    assert float(greatest) <= 2.0


@X86
@pytest.mark.parametrize("target", FEATURES)
def test_instructions_are_packed(target: str, tmp_path: Path) -> None:
    processor, features, registers = FEATURES[target]
    text = run(COMPILE, tmp_path, processor, features)
    packed = re.findall(rf"\bvf[n]?madd\d+pd\s.*%{registers}", text)
    assert len(packed) > 100  # Four functions, and a vector is two or four registers.
    assert re.findall(r"\bv?(?:add|sub|mul|div|fn?madd\d+|fn?msub\d+)sd\s", text) == []
