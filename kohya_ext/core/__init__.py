"""What every room may use: what we are called, our errors, how we speak to a terminal, where our data lies."""
