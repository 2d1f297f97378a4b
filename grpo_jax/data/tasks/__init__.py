"""Tasks that make their own problems."""
