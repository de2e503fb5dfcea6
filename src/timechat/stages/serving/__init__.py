"""Models by name, opened and vetted to answer: `chat` and `serve`."""
