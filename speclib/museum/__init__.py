"""Speculative sampling as it goes wrong in public code and articles: each exhibit runs, and its wrong law is exact.

Four rooms: EXHIBITS (`rules`), GUESSERS (`drafters`), MASKS (`masks`) and MISMEASUREMENTS (`measurements`). Nothing
here is for use.
"""

from .drafters import GUESSERS, GuesserExhibit, siblings_apart_law
from .masks import MASKS
from .measurements import MISMEASUREMENTS
from .rules import EXHIBITS, MATCH, PLAIN, Exhibit, accepts, by, filtered, resample_from_p_law, residuals, threshold_law

__all__ = ["EXHIBITS", "GUESSERS", "MASKS", "MATCH", "MISMEASUREMENTS", "PLAIN", "Exhibit", "GuesserExhibit"]
__all__ += ["accepts", "by", "filtered", "resample_from_p_law", "residuals", "siblings_apart_law", "threshold_law"]
