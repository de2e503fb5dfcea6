"""What is asked, frozen to token ids, and asking it of one model."""
