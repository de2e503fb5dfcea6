"""Retrieval: documents to chunks, chunks to an index, a question to what it needs to know."""
