"""What goes around a region's kernel: clearing elements, adding up what lanes and threads left.

Sums have one order, which depends on nothing but the region: each element has one thread that adds
its numbers up, or one block whose threads do so side by side and then add up in pairs.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import cuda, types

from tapegrad.kernels.cuda.jit import helper, kernel
from tapegrad.kernels.cuda.words import (
    ADDS,
    ALONG,
    AROUND,
    BASE,
    COUNT,
    INDEX,
    OFFSET,
    ORDER,
    PARTS,
    REDUCED,
    REST,
    SOURCE,
    STARTS,
    STRIDES,
    TARGET,
    TARGETS,
)


@helper
def walk(words, extents, strides, axes, number):
    """Return how far a position, numbered in C order over some axes, is from the first."""
    at = np.int64(0)
    rest = np.int64(number)
    for axis in range(axes - 1, 0, -1):
        extent = words[extents + axis]
        outer = np.int64(np.uint64(rest) // np.uint64(extent))  # there is no sign to look at
        at += (rest - outer * extent) * words[strides + axis]
        rest = outer
    return at + rest * words[strides] if axes > 0 else at


@helper
def place(words, index, extents, axes, window, lane):
    """Return the place of the element that a lane meets through a window."""
    at = words[window + OFFSET] + walk(words, extents, window + STRIDES, axes, lane)
    listed = words[window + INDEX]
    if listed >= 0:
        at = words[window + BASE] + np.int64(index[listed + at])
    return at


@helper
def target_of(words, index, element):
    """Return the place of an element of a pass."""
    axes = words[AROUND]
    at = walk(words, REST, REST + axes, axes, element)
    if words[TARGETS] >= 0:
        at = np.int64(index[words[TARGETS] + at])
    return words[TARGET] + at


@helper
def source_of(words, element):
    """Return the place of the first number that goes into an element."""
    axes = words[AROUND]
    return words[SOURCE] + walk(words, REST, REST + 2 * axes, axes, element)


@helper
def member(words, j):
    """Return how far the j-th number of an element is from its first."""
    axes = words[ALONG]
    extents = REST + 3 * words[AROUND]
    return walk(words, extents, extents + axes, axes, j)


def clears(start):
    """Return the kernel that makes elements a number."""

    @kernel
    def clear(memory, words, index):
        """Make elements what they are before any lane meets them; a thread an element."""
        threads = np.int64(cuda.gridDim.x) * np.int64(cuda.blockDim.x)
        element = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
        while element < words[COUNT]:
            memory[target_of(words, index, element)] = start
            element += threads

    return clear


clear = clears(-0.0)
"""To which adding anything gives just that."""
clear_maximum, clear_minimum = clears(-np.inf), clears(np.inf)


@kernel
def sum_by_threads(memory, words, index):
    """Add up the numbers of each element in their order; a thread an element."""
    threads = np.int64(cuda.gridDim.x) * np.int64(cuda.blockDim.x)
    element = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    while element < words[COUNT]:
        at = target_of(words, index, element)
        first = source_of(words, element)
        if words[ORDER] >= 0:
            start = np.int64(index[words[STARTS] + element])
            stop = np.int64(index[words[STARTS] + element + 1])
            total = memory[first + np.int64(index[words[ORDER] + start])]
            for j in range(start + 1, stop):
                total += memory[first + np.int64(index[words[ORDER] + j])]
        else:
            total = memory[first]
            for j in range(1, words[REDUCED]):
                total += memory[first + member(words, j)]
        if words[ADDS]:
            total += memory[at]
        memory[at] = total
        element += threads


@helper
def added(x, y):
    """Return the sum of two numbers."""
    return x + y


@helper
def larger(x, y):
    """Return the larger of two numbers; a nan, where there is one."""
    return x if x > y or x != x else y


@helper
def smaller(x, y):
    """Return the smaller of two numbers; a nan, where there is one."""
    return x if x < y or x != x else y


def extremes_by_threads(met):
    """Return the kernel that takes the largest or the smallest numbers."""

    @kernel
    def by_threads(memory, words, index):
        """Take the extreme of the numbers of each element in their order; a thread an element."""
        threads = np.int64(cuda.gridDim.x) * np.int64(cuda.blockDim.x)
        element = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
        while element < words[COUNT]:
            at = target_of(words, index, element)
            first = source_of(words, element)
            start, stop = np.int64(0), words[REDUCED]
            if words[ORDER] >= 0:
                start = np.int64(index[words[STARTS] + element])
                stop = np.int64(index[words[STARTS] + element + 1])
            found = memory[at]
            for j in range(start, stop):
                if words[ORDER] >= 0:
                    value = memory[first + np.int64(index[words[ORDER] + j])]
                else:
                    value = memory[first + member(words, j)]
                found = met(found, value) if words[ADDS] or j > start else value
            memory[at] = found
            element += threads

    return by_threads


maximum_by_threads, minimum_by_threads = extremes_by_threads(larger), extremes_by_threads(smaller)


def by_blocks(real, kind, start, met):
    """Return the kernel that adds up many numbers of a type, or takes their extremes."""

    @kernel
    def one_by_blocks(memory, words, index):
        """Make one of a part of the numbers of an element; a block a part, in shared memory.

        Results of parts go to consecutive places from `TARGET` on. The number of threads is a power
        of two, and the shared memory holds a number for each.
        """
        sums = cuda.shared.array(0, kind)
        t = np.int64(cuda.threadIdx.x)
        threads = np.int64(cuda.blockDim.x)
        block = np.int64(cuda.blockIdx.x)
        parts = words[PARTS]
        element = np.int64(np.uint64(block) // np.uint64(parts))
        part = np.uint64(block - element * parts)
        members = np.uint64(words[REDUCED])
        first = source_of(words, element)
        j = np.int64(part * members // np.uint64(parts)) + t
        stop = np.int64((part + np.uint64(1)) * members // np.uint64(parts))
        total = real(start)
        while j < stop:
            total = met(total, memory[first + member(words, j)])
            j += threads
        sums[t] = total
        half = threads >> 1
        while half > 0:
            cuda.syncthreads()
            if t < half:
                sums[t] = met(sums[t], sums[t + half])
            half >>= 1
        if t == 0:
            memory[words[TARGET] + block] = sums[0]

    return one_by_blocks


_TYPES = {"float64": (np.float64, types.float64), "float32": (np.float32, types.float32)}
sum_by_blocks, maximum_by_blocks, minimum_by_blocks = (
    {name: by_blocks(*kinds, start, met) for name, kinds in _TYPES.items()}
    for start, met in ((-0.0, added), (-np.inf, larger), (np.inf, smaller))
)
"""These kernels by the type of the numbers."""
