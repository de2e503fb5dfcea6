"""What rows can look like, and how each look is read as a conversation."""
