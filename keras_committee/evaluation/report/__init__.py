"""What are the members of one or more runs and their committees worth? One page, and its pictures."""

from keras_committee.evaluation.report.report import MODEL_CARD_FILE, Report, write_report

__all__ = ["MODEL_CARD_FILE", "Report", "write_report"]
