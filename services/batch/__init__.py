"""Batches: requests that can wait, at half the price or less."""
