"""How a suite runs: the graph of stages, launching, display, lock, provenance, plans and their costs.
Imports `encoder` and the bridges' configs; of the harness, `harness.config` alone.
"""
