"""Training OpenVision 3, the CLIP baseline and the demo's VAE: objective, step, trainer, recipes, plans.
Imports `runtime`, `data`, `models` and `metrics`; never the frozen side (the files above this folder).
"""
