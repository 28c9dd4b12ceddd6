"""Sweeps with data: merges at many points, each scored on a suite; every kind is one file, points are stored."""
