"""What needs merging and evaluation together."""
