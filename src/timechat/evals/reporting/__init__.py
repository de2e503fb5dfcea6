"""The proof as files: JSON for scripts, Markdown for a terminal, one page for everybody."""
