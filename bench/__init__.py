"""One benchmark per claim: ``python -m bench.NAME [--data DIR] [--json FILE] [--quick] [--plots DIR] [--seed N]``."""
