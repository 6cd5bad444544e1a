"""How local model folders are made: ``python -m models.build``. The weights themselves are never committed."""
