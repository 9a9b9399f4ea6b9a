"""The one leaf everybody may use: atomic writes, text forms, locks and journalled transactions over files."""
