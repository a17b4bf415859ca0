"""What a prompt has learned: nearest words, attention, pictures."""
