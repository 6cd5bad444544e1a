"""The deployables of Tenth: one folder each."""
