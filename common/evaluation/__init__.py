"""What a trained model learned: NumPy in, numbers out, one file a kind of question."""
