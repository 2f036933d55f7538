"""Recomputing instead of storing: `checkpoint` and `checkpoint_loop`."""
