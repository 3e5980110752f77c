"""Models of a few tokens that are hard on a rule: without a common token, equal after some prefixes, nearly equal."""

import numpy as np

from speclib.law.exact import TableModel


def disjoint_tables(vocabulary: int, seed: int) -> tuple[TableModel, TableModel]:
    """Two models that never agree on a possible token, after any prefix."""

    def side(which):
        def row(prefix):
            rng = np.random.default_rng([seed, *prefix])
            order = rng.permutation(vocabulary)
            cut = rng.integers(1, vocabulary)
            support = order[:cut] if which == 0 else order[cut:]
            weights = np.zeros(vocabulary)
            weights[support] = rng.dirichlet(np.ones(len(support)))
            return weights

        return TableModel(vocabulary, row)

    return side(0), side(1)


def patchwork(table: TableModel, other: TableModel, share: float, seed: int) -> TableModel:
    """After a random `share` of all prefixes the rows of `other`, after the rest those of `table`."""
    return TableModel(
        table.vocabulary,
        lambda prefix: (other if np.random.default_rng([seed, *prefix]).random() < share else table).row(prefix),
    )


def blend(table: TableModel, other: TableModel, share: float) -> TableModel:
    """(1 - share) table + share other, row by row: a dial from one model to the other."""
    return TableModel(
        table.vocabulary,
        lambda prefix: (1 - share) * np.asarray(table.row(prefix)) + share * np.asarray(other.row(prefix)),
    )
