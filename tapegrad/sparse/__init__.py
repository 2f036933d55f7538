"""Sparse derivatives: structure, colouring, and programs of the nonzeros."""
