"""The orchestrator: one call, five layers, an answer and its receipt. Start at flow.py."""
