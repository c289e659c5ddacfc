"""The command line: one file a command. A file parses, calls and prints; torch is imported when a command runs."""
