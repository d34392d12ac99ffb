"""Export: files that other programs load, and the proof that they say the same."""
