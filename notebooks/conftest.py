"""nbval waits five seconds for a cell's output, whatever one asks for; a slow machine needs longer."""


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
