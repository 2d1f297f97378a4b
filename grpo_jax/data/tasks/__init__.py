"""Tasks that generate their own problems."""
