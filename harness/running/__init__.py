"""How a suite runs: the graph of stages, its engines and launchers, display, lock, provenance, plans, costs.
Imports `encoder` and the bridges' configs; of the harness, its config alone.
"""
