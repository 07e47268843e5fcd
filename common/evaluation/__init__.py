"""Metrics, one file per kind of question: functions from arrays to numbers, each tested against known answers."""
