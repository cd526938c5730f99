"""Which members, not trained yet, would help the committee most? `driver` does it, and needs Optuna."""

from keras_committee.search.budget import Budget
from keras_committee.search.search_space import ParameterRange, parse_ranges

__all__ = ["Budget", "ParameterRange", "parse_ranges"]
