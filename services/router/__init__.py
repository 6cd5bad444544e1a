"""The router: the cheapest model that answers well enough."""
