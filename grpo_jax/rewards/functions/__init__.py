"""The built-in reward functions: text in, numbers out."""
