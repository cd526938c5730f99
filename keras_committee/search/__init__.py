"""Search for further members with Optuna, under a budget. Only `driver` imports Optuna."""

from keras_committee.search.budget import Budget
from keras_committee.search.search_space import ParameterRange, parse_ranges

__all__ = ["Budget", "ParameterRange", "parse_ranges"]
