"""Training-free merging methods, one file each."""
