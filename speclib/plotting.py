"""Every figure of the workbook, one function each. Colour-blind palette, a second cue beside colour, opaque background."""

import matplotlib.pyplot as plt
import seaborn as sns

TARGET, DRAFT, ACCEPTED, REJECTED, PREDICTED = sns.color_palette("colorblind", 10).as_hex()[0:5]


def style() -> None:
    """One look for all figures: call it once, after the imports."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (8, 4.2), "figure.dpi": 90, "savefig.dpi": 150, "figure.facecolor": "white", "axes.facecolor": "white", "legend.frameon": True})
