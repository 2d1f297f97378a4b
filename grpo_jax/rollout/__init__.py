"""Phase 2: prompts -> completions."""
