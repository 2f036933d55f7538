"""w8, the cold start: from the start of Python to the first gradient of a ten-operation function.

`python -m benchmarks.peers.w8` starts one fresh process a system and round, in turn, and prints
medians of CPU seconds, and the size on disk of each system with what it requires.
"""

import argparse
import importlib.metadata
import json
import math
import re
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ..measuring import pin, run_child

POINT = (0.3, 0.7, 1.1)
FUNCTION = """
def f(sin, x, y, z):
    return sin(x * y) + z * x / (1.0 + y * y) - x * (x + z)
point = (0.3, 0.7, 1.1)
"""


@dataclass(frozen=True)
class Start:
    """What a system's user writes; `gradient` leaves three numbers in `g`."""

    imports: str
    gradient: str
    distribution: str = ""


HAND_WRITTEN = """
def gradient(x, y, z):
    d = 1.0 + y * y
    c = math.cos(x * y)
    return (
        c * y + z / d - 2.0 * x - z,
        c * x - 2.0 * y * z * x / (d * d),
        x / d - x,
    )
"""

PEERS = {
    "tapegrad": Start(
        "import numpy as np, tapegrad as tg",
        "g = tg.grad(lambda x: f(np.sin, x[0], x[1], x[2]))(np.array(point))",
        "tapegrad",
    ),
    "python": Start("import math", HAND_WRITTEN + "g = gradient(*point)"),
    "numpy": Start(
        "import math, numpy", HAND_WRITTEN + "g = gradient(*numpy.array(point))", "numpy"
    ),
    "numba_njit": Start(
        "import math, numba", "@numba.njit" + HAND_WRITTEN + "g = gradient(*point)", "numba"
    ),
    "autograd": Start(
        "import autograd, autograd.numpy as np",
        "g = autograd.grad(lambda x: f(np.sin, *x))(point)",
        "autograd",
    ),
    "xad": Start(
        "import xad.adj_1st, xad.math",
        """
with xad.adj_1st.Tape() as tape:
    leaves = [xad.adj_1st.Real(v) for v in point]
    for leaf in leaves:
        tape.registerInput(leaf)
    tape.newRecording()
    out = f(xad.math.sin, *leaves)
    tape.registerOutput(out)
    out.derivative = 1.0
    tape.computeAdjoints()
    g = [leaf.derivative for leaf in leaves]
""",
        "xad",
    ),
    "mygrad": Start(
        "import mygrad",
        """
leaves = [mygrad.tensor(v) for v in point]
f(mygrad.sin, *leaves).backward()
g = [leaf.grad for leaf in leaves]
""",
        "mygrad",
    ),
    "casadi": Start(
        "import casadi",
        """
p = casadi.SX.sym("p", 3)
out = f(casadi.sin, p[0], p[1], p[2])
g = casadi.Function("gradient", [p], [casadi.gradient(out, p)])(point).full().ravel()
""",
        "casadi",
    ),
    "torch": Start(
        "import torch",
        """
leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in point]
g = torch.autograd.grad(f(torch.sin, *leaves), leaves)
""",
        "torch",
    ),
    "pytensor": Start(
        "import pytensor, pytensor.tensor as pt",
        """
inputs = [pt.dscalar() for _ in point]
g = pytensor.function(inputs, pytensor.grad(f(pt.sin, *inputs), inputs))(*point)
""",
        "pytensor",
    ),
    "drjit": Start(
        "import drjit as dr\nfrom drjit.llvm.ad import Float64",
        """
leaves = [Float64(v) for v in point]
for leaf in leaves:
    dr.enable_grad(leaf)
dr.backward(f(dr.sin, *leaves))
g = [leaf.grad[0] for leaf in leaves]
""",
        "drjit",
    ),
    "jax_grad": Start("import jax", "g = jax.grad(lambda x: f(jax.numpy.sin, *x))(point)", "jax"),
    "jax_jit": Start(
        "import jax", "g = jax.jit(jax.grad(lambda x: f(jax.numpy.sin, *x)))(point)", "jax"
    ),
}


@dataclass
class Row:
    """Median seconds of a system, and bytes on disk."""

    peer: str
    import_cpu: float
    gradient_cpu: float
    gradient_wall: float
    own_bytes: int
    all_bytes: int


def disk_bytes(distribution: str) -> dict[str, int]:
    """Return the bytes on disk of an installed distribution and of each that it requires."""
    sizes: dict[str, int] = {}
    wanted = [distribution]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        try:
            found = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        if name in sizes:
            continue
        files = (Path(str(found.locate_file(file))) for file in found.files or [])
        sizes[name] = sum(p.stat().st_size for p in files if p.suffix != ".pyc" and p.is_file())
        for requirement in found.requires or []:
            named, _, marker = requirement.partition(";")
            required = re.match(r"[A-Za-z0-9._-]+", named)
            if required and "extra" not in marker:
                wanted.append(required.group())
    return sizes


def measure(peers: list[str], rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Start every system `rounds` times; return the rows, and why the other systems have none.

    Raises
    ------
    ArithmeticError
        If a gradient is not the function's.
    """
    starts: dict[str, list[tuple[float, float, float]]] = {peer: [] for peer in peers}
    absent: dict[str, str] = {}
    # The round before the first one fills the page cache, and compiles Python's byte code.
    for number in range(rounds + 1):
        for peer in [name for name in peers if name not in absent]:
            start = PEERS[peer]
            try:
                imported = run_child(start.imports)
                graded = run_child(
                    f"{start.imports}\n{FUNCTION}\n{start.gradient}\nvalue = [float(v) for v in g]"
                )
            except RuntimeError as failure:
                absent[peer] = str(failure)[:150]
                continue
            check(peer, graded.value)
            if number:
                starts[peer].append((imported.cpu, graded.cpu, graded.wall))
    rows = []
    for peer in peers:
        if peer not in absent:
            cpu_import, cpu_gradient, wall = map(statistics.median, zip(*starts[peer], strict=True))
            sizes = disk_bytes(PEERS[peer].distribution)
            own = sizes.get(PEERS[peer].distribution, 0)
            rows.append(Row(peer, cpu_import, cpu_gradient, wall, own, sum(sizes.values())))
    return rows, absent


def check(peer: str, gradient: list[float]) -> None:
    """Raise where the gradient is wrong by more than rounding."""
    x, y, z = POINT
    d, c = 1.0 + y * y, math.cos(x * y)
    right = (
        c * y + z / d - 2.0 * x - z,
        c * x - 2.0 * y * z * x / (d * d),
        x / d - x,
    )
    if not all(math.isclose(a, b, rel_tol=1e-13) for a, b in zip(gradient, right, strict=True)):
        raise ArithmeticError(f"{peer} answers {gradient}, the gradient is {right}")


def main() -> None:
    """Run what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.w8", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="", help="comma-separated names; all by default")
    parser.add_argument("--json", type=Path, help="a file to write all figures to")
    asked = parser.parse_args()
    pin()
    names = [name for name in asked.peers.split(",") if name] or list(PEERS)
    rows, absent = measure(names, asked.rounds)
    print(f"Python {sys.version.split()[0]}, medians of {asked.rounds} starts, CPU on one thread")
    print(
        f"{'peer':12} {'import ms':>10} {'gradient ms':>12} {'wall ms':>9} "
        f"{'own MB':>8} {'with all MB':>12}"
    )
    for row in rows:
        print(
            f"{row.peer:12} {row.import_cpu * 1e3:10.0f} {row.gradient_cpu * 1e3:12.0f} "
            f"{row.gradient_wall * 1e3:9.0f} {row.own_bytes / 1e6:8.1f} {row.all_bytes / 1e6:12.1f}"
        )
    for peer, reason in absent.items():
        print(f"{peer:12} not measured: {reason}")
    if asked.json:
        asked.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
