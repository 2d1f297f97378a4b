"""Phases 4 and 5: advantages, log-probs, losses, and the compiled update."""
