"""Tutorials: each runs as a script, from top to bottom, and as a notebook."""
