"""Text in place of classes: text encoders from folders, captions encoded once, a DiT-DH with text tokens in
its context, and the stages that train it and draw from it. Imports the models, flow and samplers of
`rae_bridge`; of the package only the command that draws imports it.
"""
