"""Prompts: templates, shots, and answers scored by a language model."""
