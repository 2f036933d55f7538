"""The table of registers: what counts as a difference. Compiling is a step of .ci/run."""

from __future__ import annotations

from tapegrad.kernels.cuda import ptx

HERE, ELSEWHERE = "# numba-cuda 1", "# numba-cuda 2"
LINES = ["straight float64 sm_80 32 0 0", "clear float64 sm_80 46 0 0"]


def table(*lines: str) -> str:
    return "\n".join([HERE, ptx.TITLE, *lines])


def test_the_same_compilers_must_give_the_same_numbers() -> None:
    assert ptx.compare(table(*LINES), LINES, HERE) == []
    more = ["straight float64 sm_80 40 0 0", LINES[1]]
    assert len(ptx.compare(table(*LINES), more, HERE)) == 1


def test_with_other_compilers_only_spills_count() -> None:
    more = ["straight float64 sm_80 40 0 0", LINES[1]]
    assert ptx.compare(table(*LINES), more, ELSEWHERE) == []
    spilling = ["straight float64 sm_80 255 16 0", LINES[1]]
    (fault,) = ptx.compare(table(*LINES), spilling, ELSEWHERE)
    assert "spills" in fault


def test_a_kernel_that_is_not_in_the_table_is_missed() -> None:
    assert ptx.compare(table(LINES[0]), LINES, HERE) == [
        "the table has other kernels: write it again with --write"
    ]


def test_the_committed_table_has_no_spills() -> None:
    head, title, *lines = ptx.TABLE.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# numba-cuda ")
    assert title == ptx.TITLE
    assert len(lines) == 12 * len(ptx.ARCHITECTURES) * len(ptx.REALS)
    assert {line.split(" ")[4] for line in lines} == {"0"}
