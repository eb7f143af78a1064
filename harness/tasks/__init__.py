"""lmms-eval's tasks of this project: a YAML file each, and the Python functions that it names.
Imports `encoder` and `llava_bridge` alone.
"""
