"""Bytes on their way into the store, and out of it when nothing needs them."""
