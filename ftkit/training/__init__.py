"""The engine: transformers' Trainer with the parts it lacks."""
