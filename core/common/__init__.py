"""What every package may use: time, JSON, addresses and the check of a word."""
