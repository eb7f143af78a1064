"""From result files to tables, figures and comparisons: every number shown was written by a stage.
Imports `encoder`, `harness.config`, `harness.metrics` and `harness.running`.
"""
