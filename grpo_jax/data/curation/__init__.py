"""Which rows are worth training on: one file a question, each a pure function from rows to an `Outcome`."""
