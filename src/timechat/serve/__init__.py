"""HTTP: OpenAI's API over the responders."""
