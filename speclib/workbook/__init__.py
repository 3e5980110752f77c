"""A file for each notebook, with its figures, checks and widgets; `common` holds what several of them use."""
