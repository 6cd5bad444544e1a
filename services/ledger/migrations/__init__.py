"""The schema's history, run by Alembic through ``services/ledger/migrate.py``."""
