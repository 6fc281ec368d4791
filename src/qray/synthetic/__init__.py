"""The synthetic data set: a phantom heart whose ejection fraction is exact, seen by a phantom scanner."""
