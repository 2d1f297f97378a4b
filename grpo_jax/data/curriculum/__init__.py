"""Which prompts come when: stages, filters by pass rate, the order of an epoch."""
