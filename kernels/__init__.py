"""Interpreters of tapes: what is generated, its generator, and the reference it is tested by."""
