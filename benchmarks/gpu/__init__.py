"""The same work on one GPU in tapegrad, JAX and PyTorch."""
