"""What is inside of artifacts: read, judged, told and compared."""
