"""The demo: a tiny model that is made on the spot, and its cold start."""
