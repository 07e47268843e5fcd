"""One question per file, grouped by the paper, or by the mistake, that the question is about."""

import common  # noqa: F401, imported first, since it keeps the backend's log quiet
