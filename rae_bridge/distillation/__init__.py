"""Distilling a DiT-DH into a student of a few steps: states to learn from, the mean velocity's identity
(stage 1), distribution matching with its critics (stage 2), what a picture costs; `rae_bridge.distill` runs
the stages. Imports the models, flow and samplers of `rae_bridge`; of the package only the command imports it.
"""
