"""Rows from files and from the Hub: one file per source format."""
