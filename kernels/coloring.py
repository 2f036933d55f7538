"""Colouring the rows, columns or both of a sparse matrix, so that few directions give it all.

Each thing, in turn, gets the lowest colour that is not forbidden.  What is forbidden is kept as
masks, one bit a colour, so that a step costs as many words as the thing has neighbours: a dense row
costs no more than its length.

Like the passes of `tapegrad.kernels.simplify`, these run as plain Python and are compiled by
`tapegrad.kernels.cpu.coloring`.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

BITS = 32  # colours in a word: bits of an int64, whose sign Python and the compiler agree about


def color_columns(order, column_start, column_rows, taken, forbidden, words, colors):
    """Give columns that meet in no row the same colour.

    The rows of column `c` are ``column_rows[column_start[c]:column_start[c + 1]]``.  This is the
    greedy partial distance-two colouring of Gebremedhin, Manne and Pothen, "What color is your
    Jacobian?", SIAM Review 47 (2005), algorithm 3.2.

    Parameters
    ----------
    order
        The columns, in the order in which they are coloured.
    taken
        For each row, `words` words: the colours of columns that meet it; zeros.
    forbidden
        Scratch of `words` words.
    colors
        By column; filled in.

    Returns
    -------
    int
        How many colours there are, or -1 if they are more than `words` words hold.
    """
    count = 0
    for column in order:
        for w in range(words):
            forbidden[w] = 0
        for i in range(column_start[column], column_start[column + 1]):
            base = column_rows[i] * words
            for w in range(words):
                forbidden[w] |= taken[base + w]
        color = 0
        while color < words * BITS and (forbidden[color // BITS] >> (color % BITS)) & 1:
            color += 1
        if color == words * BITS:
            return -1
        colors[column] = color
        count = max(count, color + 1)
        for i in range(column_start[column], column_start[column + 1]):
            taken[column_rows[i] * words + color // BITS] |= 1 << (color % BITS)
    return count


def color_star(order, start, neighbors, taken, forbidden, words, colors):
    """Colour the rows and columns of a symmetric matrix alike, so that each element stands alone.

    Neighbours have different colours, and no path of four has only two, so that each element of
    the matrix is the only one of its row, or of its column, that falls on a direction (Gebremedhin,
    Manne and Pothen, algorithm 4.1).  Two neighbours of a third may only share a colour if that of
    the third is lower and was given before.

    Parameters
    ----------
    order
        The columns, in the order in which they are coloured; many neighbours first.
    start, neighbors
        The neighbours of `c` are ``neighbors[start[c]:start[c + 1]]``; it may be one of them.
    taken
        For each column, `words` words: the colours of its neighbours; zeros.
    forbidden
        Scratch of `words` words.
    colors
        By column: at first -1, filled in.

    Returns
    -------
    int
        How many colours there are, or -1 if they are more than `words` words hold.
    """
    count = 0
    for column in order:
        for w in range(words):
            forbidden[w] = 0
        for i in range(start[column], start[column + 1]):
            other = neighbors[i]
            if other == column:
                continue
            its = colors[other]
            for w in range(words):
                mask = taken[other * words + w]
                if its >= 0:  # only what is lower than its own colour
                    if w > its // BITS:
                        mask = 0
                    elif w == its // BITS:
                        mask = (mask & ((1 << (its % BITS)) - 1)) | (1 << (its % BITS))
                forbidden[w] |= mask
        color = 0
        while color < words * BITS and (forbidden[color // BITS] >> (color % BITS)) & 1:
            color += 1
        if color == words * BITS:
            return -1
        colors[column] = color
        count = max(count, color + 1)
        for i in range(start[column], start[column + 1]):
            taken[neighbors[i] * words + color // BITS] |= 1 << (color % BITS)
    return count
