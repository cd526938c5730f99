"""Matplotlib figures of the report and TensorBoard."""
