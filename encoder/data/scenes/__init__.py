"""Scenes: a deterministic world of pictures with truths, texts and questions. Nothing is downloaded."""
