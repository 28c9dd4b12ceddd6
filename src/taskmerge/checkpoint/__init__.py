"""Model files: reading, writing, digests, and the files that travel with them."""
