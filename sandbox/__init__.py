"""Stand-ins for development: a provider that plays paid models, and a trace receiver. Never used in production."""
