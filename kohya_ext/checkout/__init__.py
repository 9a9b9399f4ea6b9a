"""Finding a checkout of Kohya and its Python, and reading what is there: its release, git, processes, hooks."""
