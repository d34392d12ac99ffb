"""Evaluation: what a model, an adapter or every checkpoint of a run is worth."""
