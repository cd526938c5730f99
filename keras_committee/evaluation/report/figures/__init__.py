"""Which pictures has the report? Plain values in, a matplotlib figure out."""
