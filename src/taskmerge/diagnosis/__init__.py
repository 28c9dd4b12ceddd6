"""What can be said of inputs before they are merged."""
