"""The networks and their losses: tensors in, tensors out; nothing is gathered, drawn or logged here.
Imports `encoder.runtime`, and of `encoder.data` the tokenizer (a text tower is as wide as its vocabulary).
"""
