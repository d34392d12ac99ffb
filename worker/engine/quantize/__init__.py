"""Quantization: fewer bits a weight, and what they cost."""
