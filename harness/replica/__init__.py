"""A miniature of every source that the paper's tables need, in the published layouts and file formats, to
rehearse on: `python -m harness.replica OUT [--seed N] [key=value ...]`. One file for each source.

Imports the world of Scenes (pictures with a truth), `encoder.runtime` and other people's packages: none of
this project's readers, so that a rehearsal tests them against layouts that they did not write. Weights are
random, pictures are drawn: nothing that is measured on a replica says anything about an encoder.
"""
