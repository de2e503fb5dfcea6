"""The same questions before and after: ask, score, compare, report."""
