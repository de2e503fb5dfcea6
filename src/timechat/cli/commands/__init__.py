"""The commands, a file for each part of the work. Each imports its verb only when called."""
