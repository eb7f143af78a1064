"""What every stage of every package stands on: configs, stages, checkpoints, devices, processes, cards.
Imports nothing else of this repository.
"""
