"""Rows on one side or the other, so that nothing leaks between them."""
