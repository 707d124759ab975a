"""Networks, rival attacks, timing and storage that the benchmark programs share."""
