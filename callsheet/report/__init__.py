"""The report of a batch: one static page with players, captions, checks and totals."""
