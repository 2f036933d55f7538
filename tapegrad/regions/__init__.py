"""Array code: stretches of a tape as straight programs over lanes, and the threads they run on."""
