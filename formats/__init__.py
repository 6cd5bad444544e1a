"""Other systems' formats, read into our messages and written from them: the client reads and writes files with it, the
batch service reads uploads. Knows nothing but the protos."""
