"""The shared kernel: what crosses a process boundary. No SQL, no Flask, no MLX."""

__version__ = "0.1.0"
