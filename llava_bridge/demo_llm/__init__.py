"""The small demo Llama and its tokenizer, taught on Scenes: nothing that a real language model needs.
Imports `encoder` and this bridge's records, prompts and data.
"""
