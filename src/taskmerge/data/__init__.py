"""Decoded items of every kind of data source."""
