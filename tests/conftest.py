"""Tests do not depend on what a machine's clock says: weights are laid out, unless a test or the caller wants it
otherwise."""

import os

os.environ.setdefault("SPECLIB_LAYOUT", "laid-out")
