"""The same work in other systems, side by side: `python -m benchmarks.peers.run w1`."""
