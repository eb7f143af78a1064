"""The networks and their losses: tensors in, tensors out; nothing is gathered, drawn or logged here.
Imports `encoder.runtime`, `encoder.metrics`, and of `encoder.data` the tokenizer, as wide as which a text
tower is.
"""
