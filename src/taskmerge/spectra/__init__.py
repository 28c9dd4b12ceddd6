"""Spectra of task vectors, what lies between tasks, and what chance would give."""
