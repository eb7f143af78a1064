"""From result files to tables, figures and comparisons: no number is computed anew here.
Imports `encoder`, `harness.config`, `harness.metrics` and `harness.running`.
"""
