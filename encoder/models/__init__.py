"""The networks and their losses: tensors in, tensors out; nothing is gathered, drawn or logged here.
Imports `encoder.runtime`, `encoder.metrics`, and of `encoder.data` the tokenizer, whose vocabulary sizes the
text towers.
"""
