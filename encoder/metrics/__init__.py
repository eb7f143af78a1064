"""What trainers and tables measure by, and the feature networks of it: pure functions of tensors.
Imports `encoder.runtime` alone.
"""
