"""Kernels that Numba compiles. Importing a module of this package imports Numba."""
