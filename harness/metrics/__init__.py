"""Numbers of the generation suite: one file each, pure functions over features or pictures, statistics in
float64. Imports `encoder`, and the mark of a replica.
"""
