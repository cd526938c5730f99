"""Which pictures are drawn? Plain values in, a matplotlib figure out."""
