"""A miniature of Kohya, and the demonstration that runs on it. Importing this package loads no torch."""
