"""LLaVA-1.5 over any frozen encoder: tower, prompts, both training stages, and the lmms-eval model."""
