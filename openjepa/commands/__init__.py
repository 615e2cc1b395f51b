"""What a user can ask for: one file a verb of the command line, named like it."""
