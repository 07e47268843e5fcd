"""What the scripts, and the tools on a run, use."""

import os

# Before Keras loads its backend, whose log would stand before our first line; TensorFlow reads it at its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
