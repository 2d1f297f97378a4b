"""Sampled tokens -> text -> rewards, each host its own share."""
