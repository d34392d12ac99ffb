"""Training: the run, its loop, its data's order, and checkpoints it goes on from."""
