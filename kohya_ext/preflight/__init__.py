"""Before a run: will it start, what will it train, does it fit a card; asked of the installed script itself."""
