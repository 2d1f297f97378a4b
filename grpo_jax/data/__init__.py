"""Phase 1: datasets -> chat template -> prompt batches, and tasks that make themselves. No jax in here."""
