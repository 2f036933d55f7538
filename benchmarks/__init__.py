"""Benchmarks of tapegrad: an asv suite, the same work in other systems, and one report.

The modules `record`, `sweep`, `index_loop`, `cold_start` and `memory` are the asv suite. `report`
prints the figures that the project promises, and `peers` measures the same work elsewhere. See
README.md in this folder.
"""
