"""Curation: which rows are worth training on. Each file has a pure function from rows to a `CurationOutcome`."""
