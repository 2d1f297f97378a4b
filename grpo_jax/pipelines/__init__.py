"""The verb `pipeline`: a file of stages, each a verb with its settings, some of them outputs of earlier stages."""
