"""LLaVA-NeXT: a picture of any size as a whole and as tiles, each a view for the frozen tower.

views (which canvas, which tiles, how many tokens), model (their tokens as one sequence), cache (the stage
that runs the frozen side once), pictures (the views of a training batch).
Imports of its own package `config`, `over_tokens`, `pictures` and `tower` alone.
"""
