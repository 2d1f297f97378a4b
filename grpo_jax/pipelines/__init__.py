"""Pipelines: files of steps. Each step is a verb with its settings, which may refer to the outputs of earlier steps."""
