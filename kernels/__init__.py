"""Interpreters of tapes: the generator, what it generates, and the reference they are tested against."""
