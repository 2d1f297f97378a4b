"""Phase 6: what a run leaves on disk and shows: checkpoints, metrics, completions, progress."""
