"""Durable attacks on data sets that do not fit into memory: inputs, job files, blocks, results."""
