"""What the ledger says, for people and for other programs: tables, the page, CSV, Parquet and FOCUS files."""
