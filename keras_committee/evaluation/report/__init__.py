"""What are the members of one or more runs and their committees worth? One page, and its pictures."""

from keras_committee.evaluation.report.report import Report, write_report

__all__ = ["Report", "write_report"]
