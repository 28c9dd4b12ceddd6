"""Metrics, and models run over data."""
