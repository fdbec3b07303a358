"""Model families and their quirks: one file per kind of architecture."""
