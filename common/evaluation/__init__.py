"""Measuring instruments, one file a kind of question, each proved in tests/: arrays in, numbers out."""
