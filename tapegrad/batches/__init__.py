"""One program over many samples: `program.map` and `vmap`."""
