"""The pictures of the report: plain values in, a matplotlib figure out."""
