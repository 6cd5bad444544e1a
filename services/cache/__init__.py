"""The semantic cache: the same question costs nothing."""
