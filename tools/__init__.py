"""What is done with a finished run."""

import common  # noqa: F401, first: it keeps the backend's log quiet
