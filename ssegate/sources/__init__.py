"""Thin shells round the core that wait for an upstream and say what happened."""
