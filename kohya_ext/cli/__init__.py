"""The command line: parses, calls, prints. One module a command group; nothing is decided here."""
