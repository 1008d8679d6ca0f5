"""Arguments, names of files, and optional packages: one line that says what is wrong."""
