"""The registry: artifacts and their versions, the names that move, the rules people give."""
