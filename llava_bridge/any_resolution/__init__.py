"""LLaVA-NeXT: a picture of any size as a whole and as tiles, each a view for the frozen tower.

views (which canvas, which tiles, how many tokens). Imports nothing else of its own package.
"""
