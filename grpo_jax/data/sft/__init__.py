"""Data for supervised fine-tuning: examples, packing, mixtures, and rejection of samples."""
