"""Stage 2: prompts -> completions."""
