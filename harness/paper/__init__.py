"""The sources of the paper's tables: where each lies under one `data_root`, and whether it is what it should
be. Everything is looked at cheaply: names, headers and counts, never pixels or whole weights.

Imports `encoder.runtime`, and of the replica only its mark.
"""
