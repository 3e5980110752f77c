"""What the reader moves. Core ipywidgets only (7.7 and 8): sliders and buttons that redraw an Image or an HTML."""

import io

import ipywidgets as widgets


def picture(figure) -> widgets.Image:
    """A matplotlib figure as an image widget; the figure is closed, so that it is not shown a second time."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return widgets.Image(value=buffer.getvalue(), format="png")
