"""Examples: tutorials, and trainers to run from the command line."""
