"""Regions and batches on a CUDA device."""
