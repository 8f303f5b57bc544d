"""What is learned to serve a finished generator; commands only, nothing imports it."""
