"""Libraries of machine code: kept on disk, refused where they are not what was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad import execute
from tapegrad.kernels import cpu, native
from tapegrad.kernels.frames import with_room
from tapegrad.kernels.native import LIBRARIES, Library

needs_support = pytest.mark.skipif(not native._supported, reason="compiled by Numba's own means")

SMALL = """
from tapegrad.kernels.cpu.jit import alone, kernel, native, part, word

@alone
def double(x):
    return x + x

@part
def weigh(x, y):
    return double(x) - 3 * y

@kernel
def total(x, y, z):
    return weigh(x, y) + z

def nothing(a, b, c, d):
    weigh(a, b)

def compile_all():
    total.compile("int64(int64, int64, int64)")
    return {"total": total, "nothing": native(nothing, "void(int64, int64, int64, int64)")}
"""
ARGUMENTS, TOTAL = (5, 2, -1 << 40), 4 - (1 << 40)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    found = tmp_path / "cache"
    found.mkdir()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(found))
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A library of two functions: the kernels' own take seconds to compile."""
    source = tmp_path / "small.py"
    source.write_text(SMALL)
    library = Library("small", (*native._COMMON, str(source)), {"total": 3}, {"nothing": 4})
    monkeypatch.setattr(native, "LIBRARIES", {"small": library})
    monkeypatch.setattr(native, "failures", {})
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(cpu, "__path__", [*cpu.__path__, str(tmp_path)])
    yield source
    sys.modules.pop("tapegrad.kernels.cpu.small", None)


def test_all_libraries_are_loaded_as_such() -> None:
    assert set(execute._NATIVE) == set(LIBRARIES)


def file_in(folder: Path, name: str = "regions") -> Path:
    (file,) = folder.glob(f"tapegrad-{name}-*")
    return file


# -- files -----------------------------------------------------------------------------------------


def test_what_is_stored_is_found(folder: Path) -> None:
    assert native.stored("regions") is None
    native._store("regions", b"code")
    assert native.stored("regions") == b"code"
    native._store("regions", b"other code")
    assert native.stored("regions") == b"other code"
    assert list(folder.iterdir()) == [file_in(folder)]  # nothing is left beside it


@pytest.mark.parametrize("content", [b"", b"short", None], ids=["empty", "short", "altered"])
def test_a_damaged_file_is_compiled_again(folder: Path, content: bytes | None) -> None:
    native._store("regions", b"code")
    file = file_in(folder)
    file.write_bytes(file.read_bytes()[:-1] + b"!" if content is None else content)
    assert native.stored("regions") is None


def test_other_sources_processors_or_versions_make_other_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native._store("regions", b"code")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "-avx512f")
    assert native.stored("regions") is None
    monkeypatch.delenv("NUMBA_CPU_FEATURES")
    assert native.stored("regions") == b"code"
    known = LIBRARIES["regions"]
    more = known._replace(sources=(*known.sources, "words.py"))
    with monkeypatch.context() as other:
        other.setitem(LIBRARIES, "regions", more)
        assert native.stored("regions") is None
    with monkeypatch.context() as other:
        other.setattr(sys, "version", "3.99")
        assert native.stored("regions") is None
    version_of = native._version_of
    monkeypatch.setattr(native, "_version_of", lambda name: version_of(name) + "!")
    assert native.stored("regions") is None


def test_readers_see_whole_files_while_others_write() -> None:
    contents = [bytes([i]) * (1 << 16) for i in range(4)]

    def write(content: bytes) -> None:
        for _ in range(20):
            native._store("regions", content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    native._store("regions", contents[0])
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert native.stored("regions") in contents
    for writer in writers:
        writer.join()
    assert native.stored("regions") in contents


def test_without_a_place_the_user_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tapegrad.kernels.cpu import jit

    (folder / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder / "file" / "folder"))
    monkeypatch.setattr(jit, "_warned", False)
    assert native.stored("regions") is None
    native._store("regions", b"code")
    assert "no writable cache directory" in capsys.readouterr().err


def test_without_a_variable_the_cache_is_beside_the_module_or_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside, users = native._folders()
    assert beside == Path(cpu.__file__).parent / "__pycache__"
    assert users == tmp_path / "tapegrad"


# -- compiling and linking -------------------------------------------------------------------------


@needs_support
def test_a_library_is_compiled_and_then_loads(small: Path, folder: Path) -> None:
    kernels = native.load("small")
    assert kernels["total"](*ARGUMENTS) == TOTAL
    assert isinstance(kernels["nothing"], int)
    assert native.load("small") is kernels
    assert native.stored("small") is not None
    again = native._load("small")
    assert again["nothing"] != kernels["nothing"]  # linked from the file
    assert again["total"](*ARGUMENTS) == TOTAL
    assert not native.failures


def _raise(*_: Any) -> None:
    raise AttributeError("the inside of Numba is not as it was")


def _give_garbage(*_: Any) -> bytes:
    image = native.Image({}, {"no_such_function": [0]}, np.empty(0, np.uint32), bytes(8))
    return image.to_bytes()


@pytest.mark.parametrize("how", ["build", "garbage", "link", "source", "platform", "folder"])
def test_what_fails_is_compiled_by_numba(
    how: str, small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapegrad.kernels.cpu import building

    if how == "platform":
        monkeypatch.setattr(native, "_supported", False)
    elif how == "folder":
        (folder / "file").write_text("")
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder / "file" / "folder"))
    elif how == "source":  # as in a package that is imported from an archive
        known = native.LIBRARIES["small"]
        monkeypatch.setitem(native.LIBRARIES, "small", known._replace(sources=("absent.py",)))
    elif how == "link":
        monkeypatch.setattr(native, "link", _raise)
    else:
        monkeypatch.setattr(building, "build", {"build": _raise, "garbage": _give_garbage}[how])
    kernels = native.load("small")
    assert kernels["total"](*ARGUMENTS) == TOTAL
    assert isinstance(kernels["nothing"], int)
    if native._supported:
        assert list(native.failures) == ([] if how == "folder" else ["small"])


@needs_support
def test_what_is_loaded_from_disk_needs_no_numba(small: Path, folder: Path) -> None:
    native.load("small")
    program = f"""
import sys
from tapegrad.kernels import native
native.LIBRARIES["small"] = native.{native.LIBRARIES["small"]!r}
assert native.load("small")["total"](5, 2, 1) == 5
assert "numba" not in sys.modules and not native.failures
"""
    run(program)


@needs_support
def test_functions_outlive_what_made_them(small: Path, folder: Path) -> None:
    """Python looks at functions when it ends, and has taken modules apart by then."""
    native.load("small")
    program = f"""
import gc, weakref
from tapegrad.kernels import native
native.LIBRARIES["small"] = native.{native.LIBRARIES["small"]!r}
total = native.load("small")["total"]
kept = [weakref.ref(part) for part in native._kept if not isinstance(part, tuple)]
vars(native).clear()
gc.collect()
assert kept and all(reference() is not None for reference in kept)
assert total(5, 2, 1) == 5
"""
    run(program)


@needs_support
def test_processes_that_compile_at_once_agree(small: Path, folder: Path) -> None:
    program = f"""
import sys
from tapegrad import execute
from tapegrad.kernels import cpu, native
cpu.__path__.append({str(small.parent)!r})
native.LIBRARIES["small"] = native.{native.LIBRARIES["small"]!r}
assert native.load("small")["total"](5, 2, 1) == 5 and not native.failures
"""
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    code = native.stored("small")
    assert code is not None
    assert native.link(native.LIBRARIES["small"], code)["total"](*ARGUMENTS) == TOTAL
    assert len(list(folder.glob("tapegrad-small-*"))) == 1


CACHE = os.environ.get("NUMBA_CACHE_DIR", "")
"""Where compiled kernels are found by other tests, too."""

WARM = """
import sys
import numpy as np
import tapegrad as tg
from tapegrad import execute
if len(sys.argv) > 1:
    execute.load(sys.argv[1])
    sys.exit()
x = np.linspace(0.1, 3.0, 1_000_000)
gradient = tg.grad(lambda x: np.sum(np.sin(x) * x))(x)
np.testing.assert_allclose(gradient, np.sin(x) + x * np.cos(x), rtol=1e-14, atol=1e-14)
values = tg.vmap(lambda x, y: np.exp(x) * y)(x, x)
np.testing.assert_allclose(values, np.exp(x) * x, rtol=1e-14)
assert not {"numba", "llvmlite"} & set(sys.modules)
"""


def test_executors_know_the_libraries_without_importing_what_loads_them() -> None:
    assert set(execute._NATIVE) == set(native.LIBRARIES)


@needs_support
def test_the_first_gradient_of_arrays_imports_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    if CACHE:
        monkeypatch.setenv("NUMBA_CACHE_DIR", CACHE)
    for family in ("regions", "planning"):
        run(WARM, family)  # compiled, if it never was
    run(WARM)


GRADIENTS = """
import sys
import numpy as np
import tapegrad as tg
from tapegrad.kernels import native
if sys.argv[1] == "numba":
    native._supported = False
from tapegrad.regions import straight, threads
straight.cost = lambda region: 0.0
x, y = np.linspace(-2.0, 3.0, 30_000), np.linspace(0.5, 40.0, 100)
f = lambda x, y: np.sum(np.exp(np.sin(x)) * x**3 / y[:, None]) + np.max(np.sqrt(y))
found = []
with tg.executor("compiled"):
    for least in (np.inf, 0.0):  # regions are compiled never, or after their first run
        straight.least = lambda: least
        for n in (1, 2, 1):
            tg.set_num_threads(n)
            found += tg.grad(f, argnums=(0, 1))(x.reshape(100, -1), y)
assert ("numba.core" in sys.modules) and not native.failures
np.save(sys.argv[2], np.concatenate([part.ravel() for part in found]))
"""


@needs_support
def test_numba_compiles_the_same_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    if CACHE:
        monkeypatch.setenv("NUMBA_CACHE_DIR", CACHE)
    results = []
    for how in ("library", "numba"):
        run(GRADIENTS, how, str(tmp_path / f"{how}.npy"))
        results.append(np.load(tmp_path / f"{how}.npy"))
    np.testing.assert_array_equal(*results)  # to the bit
    for part in results[0].reshape(6, -1):
        np.testing.assert_array_equal(part, results[0][: part.size])


WARM_SCALARS = """
import sys
import numpy as np
import tapegrad as tg
from tapegrad import execute
if len(sys.argv) > 1:
    execute.load(sys.argv[1])
    sys.exit()
def f(x):
    for _ in range(10_000):
        x = np.sin(x) + x
    return x
f = tg.function(f)
for _ in range(150):  # then as single calls
    x = f(0.5)
assert abs(np.sin(x)) < 1e-12
def g(x):
    for _ in range(100):
        x = np.sin(x) + x
    return np.sum(x)
for _ in range(10):  # tapes too short for a plan
    tg.grad(lambda v: g(v[::-1]))(np.linspace(0.0, 1.0, 20))
assert all(execute.is_loaded(family) for family in ("scalar", "replay", "lanes"))
assert not {"numba", "llvmlite"} & set(sys.modules)
"""


@needs_support
def test_the_first_gradient_of_numbers_imports_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    if CACHE:
        monkeypatch.setenv("NUMBA_CACHE_DIR", CACHE)
    for family in ("scalar", "replay", "lanes"):
        run(WARM_SCALARS, family)  # compiled, if it never was
    run(WARM_SCALARS)


NUMBERS = """
import sys
import numpy as np
import tapegrad as tg
from tapegrad.kernels import native
if sys.argv[1] == "numba":
    native._supported = False
from tapegrad import execute, special
from tapegrad.programs import recorded, rerolling
recorded.READY_AFTER = 2
rerolling.LEAST_INSTRUCTIONS = 16
def f(x, y):
    total = 0.0
    for _ in range(60):
        x = np.exp(np.sin(x)) * 0.3 + np.hypot(x, y) ** 3 / (9.0 + x * x)
        x = x - np.arctan2(y, x) / np.maximum(x * y, 3.0)
        total = total + np.tanh(x) * special.erf(y) + np.log1p(x * x) + np.fmod(x, 0.7)
    return total
def h(a):  # in lanes: it has too few cells for regions
    b = np.sin(a[::-1, :1]) * a[:, [1, 0]] + np.maximum(np.log1p(a * a), a[0])
    return np.sum(b * np.sqrt(np.hypot(a, 2.0)) - np.where(b > 0.5, b, a * 0.25))
points = [(0.3, 0.7), (1.4, 0.2), (-0.6, 2.1)]
found = []
with tg.executor("compiled"):
    program = tg.record(f, 0.3, 0.7)
    for compiles in (False, True):
        if compiles:
            program.compile()
            assert len(program.tape.replays.rolled) > 0
        for _ in range(4):
            value, gradient = program.value_and_grad(0.3, 0.7, argnums=(0, 1))
            found += [value, *gradient]
    for point in points:
        found += [*tg.grad(f, argnums=(0, 1))(*point)]
        rows = np.outer(np.linspace(0.5, 1.5, 70), point)
        found += tg.grad(h)(rows).ravel().tolist()
assert execute.is_loaded("lanes")
assert program.tape.replays.ready is not None
assert not native.failures
np.save(sys.argv[2], np.array(found))
"""


@needs_support
def test_numba_compiles_the_same_kernels_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    if CACHE:
        monkeypatch.setenv("NUMBA_CACHE_DIR", CACHE)
    results = []
    for how in ("library", "numba"):
        run(NUMBERS, how, str(tmp_path / f"{how}.npy"))
        results.append(np.load(tmp_path / f"{how}.npy"))
    np.testing.assert_array_equal(*results)  # to the bit
    assert np.isfinite(results[0]).all()


def run(program: str, *arguments: str) -> None:
    """Run a program in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_room_for_frames_changes_nothing() -> None:
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + depth(n - 1)

    assert with_room(lambda: depth(500)) == 500
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)
