"""Pretrained models: where they come from, whether to trust them, and how they load."""
