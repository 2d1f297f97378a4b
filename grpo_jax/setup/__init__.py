"""Settings -> the objects that a run works with. Training, evaluation and plans build them in the same way."""
