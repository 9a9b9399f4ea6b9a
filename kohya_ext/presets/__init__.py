"""The guide's presets, fitted to the GUI that is installed. Reads Kohya's files as text; never imports torch."""
