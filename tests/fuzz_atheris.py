"""Coverage-guided fuzzing of program files: what `fuzz_files` does at random, led by atheris.

``python tests/fuzz_atheris.py -max_total_time=600`` fuzzes for ten minutes (the options are those
of libFuzzer).  It needs the package ``atheris``, and is run by ``.ci/nightly``, not by the tests.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("this needs atheris: pip install atheris")

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["tapegrad", "fuzz_files"]):
    import fuzz_files

    import tapegrad as tg

ORIGINALS = fuzz_files.originals()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Return a mutated file: half of the time one whose digest fits, so that more is looked at."""
    rng = random.Random(seed)
    try:
        if rng.random() < 0.5:
            changed = fuzz_files.mutated(data, rng)
        else:
            changed = fuzz_files.resealed(atheris.Mutate(data, max_size))
    except Exception:  # it is no file any more that could be taken apart
        changed = rng.choice(ORIGINALS)[0]
    return changed[:max_size]


def load(data: bytes) -> None:
    """Load a file and run what it holds; anything unforeseen ends the fuzzing."""
    with tg.executor("reference"):
        fuzz_files.outcome(data, ORIGINALS[0][1])


def main() -> None:
    """Fuzz, from the original files on."""
    folder = Path("fuzz-corpus")
    folder.mkdir(exist_ok=True)
    for i, (data, _) in enumerate(ORIGINALS):
        (folder / f"original-{i}.tape").write_bytes(data)
    largest = max(len(data) for data, _ in ORIGINALS)
    options = [sys.argv[0], f"-max_len={2 * largest}", *sys.argv[1:], str(folder)]
    atheris.Setup(options, load, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
