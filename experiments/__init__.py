"""One question a file, grouped by the paper, or the mistake, that the question is about."""

import common  # noqa: F401, first: it keeps the backend's log quiet
