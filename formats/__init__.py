"""Other systems' formats, read into our messages: the client reads files with it, the batch service uploads. Knows
nothing but the protos."""
