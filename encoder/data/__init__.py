"""Pictures with their texts: shards, streams, batches, the tokenizer, and Scenes, the embedded world.
Imports `encoder.runtime` alone.
"""
