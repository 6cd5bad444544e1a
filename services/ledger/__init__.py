"""The ledger: prices, budgets, reservations and receipts. The only owner of money."""
