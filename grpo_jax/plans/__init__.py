"""Whether a run fits on hardware that is not here, and how fast that hardware could be: its own programs, compiled."""
