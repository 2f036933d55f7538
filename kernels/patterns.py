"""Which inputs each cell depends on: one pass over the tape, sharing sets between cells.

A set of inputs has a number, and cells with the same set share it.  Set 0 is empty.  A small set
is a sorted list in a pool; a large one is a pair, the union of two others, which nobody writes out
before it is asked for.  So a pass takes a bounded time for each cell, however much depends on what.

Like the passes of `tapegrad.kernels.simplify`, these run as plain Python and are compiled by
`tapegrad.kernels.cpu.patterns`.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

LIMIT = 16
"""Members of the largest set that is written out."""

# Of set s, size[s] > 0 members stand at members[start[s]:]; or it is the union of the sets start[s]
# and -size[s], which were there before it.


def unite(sets, x, y, z, first, stop, start, size, members, used):
    """Give each cell from `first` to `stop` the union of the sets of three others.

    Parameters
    ----------
    sets
        By cell: the number of its set.
    x, y, z
        By cell: the three others.
    used
        How many sets, and how many places of `members`, are used; updated.

    Returns
    -------
    int
        `stop`, or the cell at which room ran out.
    """
    ids = used[0]
    filled = used[1]
    for c in range(first, stop):
        if ids + 2 > len(start) or filled + 4 * LIMIT > len(members):
            stop = c
            break
        result = sets[x[c]]
        for turn in range(2):
            other = sets[y[c]] if turn == 0 else sets[z[c]]
            if other == 0 or other == result:
                continue
            if result == 0:
                result = other
                continue
            n = size[result]
            m = size[other]
            if n > 0 and m > 0:  # both are written out
                total = merge(members, start[result], n, start[other], m, filled)
                if total == n:
                    continue
                if total == m:
                    result = other
                    continue
                if total <= LIMIT:
                    start[ids] = filled
                    size[ids] = total
                    filled += total
                    result = ids
                    ids += 1
                    continue
            elif (n < 0 and (start[result] == other or -n == other)) or (
                m < 0 and (start[other] == result or -m == result)
            ):  # one is a half of the other
                result = max(result, other)
                continue
            start[ids] = result
            size[ids] = -other
            result = ids
            ids += 1
        sets[c] = result
    used[0] = ids
    used[1] = filled
    return stop


def merge(members, i, n, j, m, k):
    """Write two sorted lists, of `n` numbers from `i` and `m` from `j` on, as one from `k` on.

    Returns
    -------
    int
        How many numbers that is: those in both lists are written once.
    """
    first = k
    i_stop = i + n
    j_stop = j + m
    while i < i_stop or j < j_stop:
        if j == j_stop or (i < i_stop and members[i] < members[j]):
            members[k] = members[i]
            i += 1
        else:
            if i < i_stop and members[i] == members[j]:
                i += 1
            members[k] = members[j]
            j += 1
        k += 1
    return k - first


def collect(wanted, first, start, size, members, seen, seen_input, stack, columns, row, used):
    """Write out the members of the sets `wanted`, from number `first` on, one after another.

    Parameters
    ----------
    seen, seen_input
        By set, and by input: the last stamp; scratch.
    stack
        Scratch of one entry a set.
    columns
        The members found, unsorted.
    row
        By wanted set, and one more: where its members begin in `columns`.
    used
        The last stamp used, and how many sets may still be visited; updated.

    Returns
    -------
    int
        The number of wanted sets, or that of the set at which room or visits ran out.
    """
    stamp = used[0]
    visits = used[1]
    k = row[first]
    done = first
    while done < len(wanted) and visits > 0:
        stamp += 1
        top = 0
        if wanted[done] != 0:
            stack[0] = wanted[done]
            top = 1
        room = True
        while top > 0 and room:
            top -= 1
            s = stack[top]
            visits -= 1
            if size[s] > 0:
                for i in range(start[s], start[s] + size[s]):
                    j = members[i]
                    if seen_input[j] != stamp:
                        if k == len(columns):
                            room = False
                            break
                        seen_input[j] = stamp
                        columns[k] = j
                        k += 1
                continue
            for half in range(2):
                part = start[s] if half == 0 else -size[s]
                if seen[part] != stamp:
                    seen[part] = stamp
                    stack[top] = part
                    top += 1
        if not room:
            break
        done += 1
        row[done] = k
    used[0] = stamp
    used[1] = visits
    return done


def spread(mask, count, start, size, members, found):
    """Carry masks from `count` sets to the inputs in them; the masks of sets become zero.

    Parameters
    ----------
    mask, found
        By set, and by input: one bit an output.
    """
    for s in range(count - 1, 0, -1):
        m = mask[s]
        if m == 0:
            continue
        mask[s] = 0
        if size[s] > 0:
            for i in range(start[s], start[s] + size[s]):
                found[members[i]] |= m
        else:
            mask[start[s]] |= m
            mask[-size[s]] |= m
