"""Speculative sampling, the whole idea in one file: no library, two seconds, an exact law. Run it: python microspec.py

A target model p is good and slow, a draft model q is quick and worse. The draft guesses a few tokens; ONE pass of the
target scores them all; a rule keeps some of the guesses and adds one token of the target's own. The text that comes out
has the target's law, exactly, and it came in fewer passes. Here both models are counted from a few lines of text, so
small that every possible text can be summed.
"""

import random
from collections import Counter

TEXT = """
the cat sat on the mat and the dog sat on the cat . the dog and the cat sat and the mat sat on the dog .
the cat and the dog sat on the mat . the dog sat and the cat sat on the mat and on the dog . the mat sat .
"""

# --- 1. two models --------------------------------------------------------------------------------------------------
# A model is a function: the words so far -> a row, {word: probability of the next one}.

WORDS = TEXT.split()
VOCABULARY = sorted(set(WORDS))
ALONE = Counter(WORDS)
PAIRS = Counter(zip(WORDS, WORDS[1:], strict=False))


def normal(row):
    """The row, made to sum to 1. What is impossible is left out."""
    total = sum(row.values())
    return {word: weight / total for word, weight in row.items() if weight > 0}


def target(words):
    """How often each word followed the last one, and a little of everything: a bigram model. This is the slow one."""
    last = words[-1] if words else "."
    return normal({word: PAIRS[last, word] + 0.2 for word in VOCABULARY})


def draft(words):
    """How often each word occurs, whatever came before, except that none follows itself: quick, and often wrong."""
    return normal({word: ALONE[word] * (word not in words[-1:]) for word in VOCABULARY})


def filtered(row, temperature=1.0, top_k=None, top_p=1.0):
    """Temperature, then the top_k most probable words, then the fewest whose total is at least top_p."""
    row = normal({word: chance ** (1 / temperature) for word, chance in row.items()})
    ranked = sorted(row, key=row.get, reverse=True)[:top_k]
    row = normal({word: row[word] for word in ranked})
    kept, total = {}, 0.0
    for word in row:
        if total < top_p - 1e-12:
            kept[word] = row[word]
            total += row[word]
    return normal(kept)


# --- 2. the rule ----------------------------------------------------------------------------------------------------
# A rule says of one guess x: with which chance it is kept, and from which row the next word comes if it is not.


def residual(p, q):
    """What p has above q, made to sum to 1; p itself where there is nothing (then nothing is ever rejected)."""
    excess = {word: max(p[word] - q.get(word, 0), 0) for word in p}
    return normal(excess) if any(excess.values()) else p


def the_rule(p, q, x):
    """Keep x with chance min(1, p(x) / q(x)). Leviathan et al. (arXiv 2211.17192), Chen et al. (2302.01318)."""
    return min(1, p.get(x, 0) / q[x]), residual(p, q)


def a_wrong_rule(p, q, x):
    """A bug met in public code: after a rejection it draws from p, and not from the residual."""
    return min(1, p.get(x, 0) / q[x]), p


# --- 3. the loop ----------------------------------------------------------------------------------------------------


def draw(row):
    """One word from a row."""
    return random.choices(list(row), row.values())[0]


def generate(rule, p, q, gamma, length, ledger):
    """`length` words, in rounds of at most `gamma` guesses. The ledger counts passes, guesses, and those kept."""
    words = []
    while len(words) < length:
        guesses = []
        for _ in range(min(gamma, length - len(words) - 1)):  # a round adds at most one word more than it guesses
            guesses.append(draw(q([*words, *guesses])))
        rows = [p([*words, *guesses[:k]]) for k in range(len(guesses) + 1)]  # a real target: all in one pass
        ledger["target passes"] += 1
        ledger["guesses"] += len(guesses)
        for k, x in enumerate(guesses):
            keep, otherwise = rule(rows[k], q(words), x)
            if random.random() >= keep:
                words.append(draw(otherwise))
                break
            words.append(x)
            ledger["kept"] += 1
        else:
            words.append(draw(rows[-1]))  # all were kept: the pass gave one row more
    return words


# --- 4. the proof by counting ---------------------------------------------------------------------------------------
# The same loop, summed and not drawn: every guess, every decision, every next word, with its probability.


def plain_law(p, length):
    """The law of the target's own text: {text: probability}."""
    law = {(): 1.0}
    for _ in range(length):
        law = {(*text, word): mass * chance for text, mass in law.items() for word, chance in p(text).items()}
    return law


def exact_law(rule, p, q, gamma, length):
    """The law of what `generate` writes."""
    law, growing = Counter(), Counter({(): 1.0})
    for size in range(length):
        n = min(gamma, length - size - 1)
        for text in [text for text in growing if len(text) == size]:
            branches = [(text, growing.pop(text), n)]  # (words so far, probability of being here, guesses left)
            while branches:
                words, mass, left = branches.pop()
                here, ends = p(words), law if len(words) + 1 == length else growing
                if left == 0:
                    for word, chance in here.items():
                        ends[(*words, word)] += mass * chance
                    continue
                told = q(words)
                for x, guessed in told.items():
                    keep, otherwise = rule(here, told, x)
                    if keep > 0:
                        branches.append(((*words, x), mass * guessed * keep, left - 1))
                    for word, chance in otherwise.items() if keep < 1 else ():
                        ends[(*words, word)] += mass * guessed * (1 - keep) * chance
    return law


def difference(law, other):
    """The largest difference in the probability of one text."""
    return max(abs(law.get(text, 0) - other.get(text, 0)) for text in {*law, *other})


# --- 5. what comes out ----------------------------------------------------------------------------------------------


def main(temperature=0.9, top_k=5, top_p=0.95, gamma=2, length=4, seed=0):
    """Prints a text, its ledger, and how far each rule's exact law is from the target's."""
    rows = {}  # both models look at the last word alone: a row each is enough

    def under(model):
        def row(words):
            key = (model, *words[-1:])
            if key not in rows:
                rows[key] = filtered(model(words), temperature, top_k, top_p)
            return rows[key]

        return row

    p, q = under(target), under(draft)  # the SAME filters for both: what the rule compares is what is drawn from
    random.seed(seed)
    ledger = Counter()
    words = generate(the_rule, p, q, gamma, 2000, ledger)
    print(" ".join(words[:24]), "...")
    passes = ledger["target passes"]
    print(f"{len(words)} words in {passes} target passes: {len(words) / passes:.2f} tokens per pass")
    print(f"{ledger['kept']} of {ledger['guesses']} guesses kept")
    wanted = plain_law(p, length)
    print(f"\nthe exact law of the first {length} words, {len(wanted):,} texts:")
    right = difference(exact_law(the_rule, p, q, gamma, length), wanted)
    wrong = difference(exact_law(a_wrong_rule, p, q, gamma, length), wanted)
    print(f"the rule differs from the target by {right:.1e}" + (" - that is rounding" if right < 1e-12 else ""))
    print(f"drawing from p after a rejection differs by {wrong:.1e}")


if __name__ == "__main__":
    main()
