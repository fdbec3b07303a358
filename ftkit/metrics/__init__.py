"""How predictions are scored: one file per metric."""
