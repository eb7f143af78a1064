"""What can be read from frozen tokens without a language model: a probe answers the same questions.
Imports `encoder`, and from `llava_bridge` how lmms-eval asks and scores.
"""
