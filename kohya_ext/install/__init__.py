"""The installer: reads a Kohya checkout as text, changes it in one transaction, takes everything back. Never torch."""
