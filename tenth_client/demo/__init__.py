"""The demo: the whole mesh on one machine, 200 requests, and what they cost."""
