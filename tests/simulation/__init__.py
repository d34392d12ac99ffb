"""A deterministic simulation of scheduler, workers, broker, network and store.

The workers, the wires and the clock are simulated; the transition functions, the dispatcher, the
registry, garbage collection and the SQL are the real ones. A seed is a world: the same seed gives
the same faults, the same interleaving, the same end. ``python -m tests.simulation`` runs many.
"""
