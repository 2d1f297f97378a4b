"""The processes that reward functions run in: deadlines, streams, logs."""
