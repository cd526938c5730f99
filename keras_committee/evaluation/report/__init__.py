"""The report: one page, and its pictures, on what the members of one or more runs and their committees are worth."""

from keras_committee.evaluation.report.report import Report, write_report

__all__ = ["Report", "write_report"]
