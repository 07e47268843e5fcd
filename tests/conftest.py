"""What all tests share."""

import os

# Tests compile many small functions and run each a few times: half of the time went into optimising their code.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
