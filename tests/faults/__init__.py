"""Faults on real processes, which take minutes: ``make faults``. ``make test`` leaves them out."""
