"""Fusing: adapters into their base, and the proof that nothing was lost."""
