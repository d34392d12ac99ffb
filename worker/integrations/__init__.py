"""Metrics of training runs, also sent to Weights & Biases, SwanLab, MLflow and TensorBoard.

A process of its own sends them (``python -m worker.integrations``): its libraries are not the
engine's, which loads what others made and knows no secret, and whatever happens to it, the run
goes on. Keys of services come from the worker's environment, never from a spec.
"""
