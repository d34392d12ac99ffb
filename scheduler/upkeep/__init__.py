"""Keeping what there is: verify, repair, rebuild from the store, back up, restore."""
