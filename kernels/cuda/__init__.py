"""CUDA kernels of regions; `numba.cuda` is imported here and nowhere else."""
