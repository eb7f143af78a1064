"""lmms-eval tasks of this project: a YAML each, and beside it what the YAML calls."""
