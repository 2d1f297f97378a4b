"""Stage 2: prompts -> completions, in one compiled dispatch."""
