"""Ensembles and students trained on arrays and tables, without a config: functions and scikit-learn estimators."""
