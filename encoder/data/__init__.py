"""Data: shards of pictures with texts, and Scenes, the embedded world."""
