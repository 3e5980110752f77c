"""How the embedded models were made. `python -m speclib train --help` makes them again."""
