"""SceneEval: does a picture show what its prompt says? Prompts with truths from the Scenes world, the facts
that make a picture right, one judge that sees pixels alone, scores with their ceilings, floor and chance.
Imports `harness.metrics`; of what lies below, the encoders and the generators that are told texts.
"""
