"""Evidence that every example stays by itself."""
