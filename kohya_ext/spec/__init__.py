"""Facts about Kohya and about us that several rooms need: data, no code."""
