"""The compressor: fewer tokens, the same answer."""
