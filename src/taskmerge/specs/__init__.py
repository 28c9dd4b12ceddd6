"""Frozen values that say what the user wants, and the one parser of recipe files."""
