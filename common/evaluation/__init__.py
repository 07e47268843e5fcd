"""Metrics, a file for each kind of question: arrays in, numbers out. Each is tested against known answers."""
