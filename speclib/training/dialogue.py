"""What a chat model's drafts learn from: its own answers, to questions that are made here.

A draft is good when it says what the target says, so text that the target wrote is the best there is, and its own
distributions at each token of it are the lesson. The questions come from templates over topics, from the functions of
the Python source that is installed, and from paragraphs of its documentation; no public prompt is among them. Those of
some topics and modules are held out.
"""

import random
import re
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..files import code_version, digest
from ..model.language_model import LanguageModel
from . import editor
from .corpus import Corpus, Document, kept, python_source, split

TOPICS = """volcanoes; rainbows; earthquakes; tides; glaciers; thunderstorms; deserts; rivers; coral reefs
rainforests; the water cycle; photosynthesis; evolution; DNA; the immune system; the human heart; sleep; memory
the brain; digestion; muscles; teeth; eyesight; hearing; allergies; antibiotics; viruses; bacteria; nutrition
vitamins; exercise; stress; atoms; magnets; electricity; gravity; light; sound; heat; friction; radioactivity
the periodic table; acids; crystals; plastics; steel; glass; concrete; paper; soap; batteries; solar panels
wind turbines; nuclear power; petrol engines; electric cars; trains; aeroplanes; helicopters; rockets; satellites
telescopes; microscopes; clocks; compasses; maps; radios; televisions; telephones; printers; cameras; computers
the internet; search engines; passwords; encryption; databases; spreadsheets; operating systems; compilers; recursion
sorting algorithms; binary numbers; machine learning; neural networks; robots; open source software; version control
unit tests; web servers; email; video games; chess; probability; statistics; averages; fractions; percentages
prime numbers; triangles; circles; algebra; logic; graphs; money; banks; taxes; insurance; stock markets; trade
supply and demand; budgets; advertising; small businesses; contracts; courts; elections; parliaments; constitutions
human rights; newspapers; journalism; propaganda; libraries; schools; universities; exams; homework; teaching
learning a language; dictionaries; poetry; novels; short stories; fairy tales; myths; theatre; films; photography
painting; sculpture; architecture; bridges; tunnels; castles; museums; music; orchestras; guitars; pianos; singing
dancing; fashion; weaving; pottery; woodwork; gardening; compost; bees; butterflies; ants; spiders; birds; owls
penguins; dogs; cats; horses; cows; sheep; elephants; wolves; bears; snakes; frogs; fish; dinosaurs; fossils; trees
mushrooms; flowers; apples; potatoes; rice; coffee; tea; chocolate; cheese; soup; pasta; pizza; salad; pancakes
spices; restaurants; kitchens; recipes; picnics; birthdays; weddings; holidays; hotels; beaches; mountains; islands
camping; swimming; running; football; tennis; skiing; sailing; the Olympic Games; yoga; ancient Egypt; ancient Greece
the Roman Empire; the Middle Ages; the Vikings; the Renaissance; the Industrial Revolution; the moon landing
the printing press; the steam engine; the wheel; writing; Japan; Brazil; Kenya; Canada; India; Italy; Australia
Norway; Mexico; villages; cities; traffic; recycling; pollution; forests; farming; housing; neighbours; friendship
kindness; honesty; courage; patience; teamwork; leadership; meetings; presentations; interviews; habits"""
HELD_OUT_TOPICS = """lighthouses; umbrellas; lemons; the Silk Road; whales; origami; the metric system; elevators; jazz
bicycles; vaccines; the seasons; bread; inflation; tyres; hiking; planets; climate; tigers; mirrors; bakeries; kites"""
FORMS = """Explain {} in simple terms.
Why do people care about {}?
What should a beginner know about {}?
Explain to a child what is interesting about {}.
How has our view of {} changed over time?
Describe {} in one paragraph.
What are common misunderstandings about {}?
Compare {} with {}.
What do {} and {} have in common?
Write a short introduction to {} for a school book.
How would you explain {} to somebody who knows a lot about {}?
List ten facts about {}.
Give five tips about {}.
Name eight words that have to do with {}, one on each line.
Give the advantages and disadvantages of {} as two lists.
Write a numbered list of steps for learning about {}.
Ask me six questions about {}.
Suggest seven titles for an article about {}.
Make a table of four rows about {} and {}.
Write a short story about {}.
Write a poem of eight lines about {}.
Write a friendly email that asks for information about {}.
Write a dialogue between two friends about {}.
Write a short speech about {}.
Write a product description that mentions {} and {}.
Write a letter to the editor about {}.
Summarise what is known about {} in three sentences.
Write a Python program that prints a quiz about {}.
Write a Python class for a record about {} with three attributes, and show how to use it.
Write a Python function that counts how often the word {} occurs in a text.
Write an HTML page about {} with a heading and a list.
Write a JSON example that describes {}."""
SUMS = """What is {a} plus {b}? Show the steps.
What is {a} minus {c}? Explain.
What is {c} times {d}? Work it out step by step.
A box holds {c} pencils. How many pencils are in {d} boxes?
A book has {b} pages, and Tom reads {c} pages a day. How many days does he need?
Share {b} euros among {c} people. How much does each get?
A car drives {c} kilometres in one hour. How far does it drive in {d} hours?
Sara has {a} stamps, gives away {c} and buys {d}. How many has she now?
What is {d} percent of {a}?
Write the first {c} multiples of {d}.
Count from {c} to {a} in steps of {d}."""
FUNCTIONS = """Explain what this Python function does:
Write a docstring for this Python function:
Add type hints to this Python function and write all of it again:
Find possible bugs in this Python function:
Rewrite this Python function with clearer names:
Write a test for this Python function:"""
PASSAGES = """Summarise this text in one sentence:
Copy this text exactly:
Rewrite this text in simpler words:
Turn this text into a list of points:
Correct any mistakes in this text and write it again:
Write this text again as a question and an answer:
Which words of this text are the most important? """


def questions(learnt: list[Document], held_out: list[Document], count: int = 24_000) -> tuple[list[str], list[str]]:
    """(about `count` distinct questions to learn from, some 300 held out), in a fixed order without order."""
    choice = random.Random(0)
    asked = _questions(_names(TOPICS), learnt, count, choice)
    kept_back = _questions(_names(HELD_OUT_TOPICS), held_out, 300, choice)
    learnt_too = set(asked)  # some sums
    return asked, [question for question in kept_back if question not in learnt_too]


def _questions(topics: list[str], documents: list[Document], count: int, choice: random.Random) -> list[str]:
    functions = [text for document in documents for text in editor.functions(document) if 60 < len(text) < 900]
    passages = [text for document in documents for text in _paragraphs(document.text)]

    def about_topics() -> str:
        return choice.choice(FORMS.splitlines()).format(*choice.sample(topics, 2))

    def sums() -> str:
        numbers = {"a": choice.randint(20, 999), "b": choice.randint(50, 500)}
        return choice.choice(SUMS.splitlines()).format(**numbers, c=choice.randint(3, 30), d=choice.randint(2, 12))

    def shown(instructions: str, texts: list[str]) -> str:
        return f"{choice.choice(instructions.splitlines())}\n\n{choice.choice(texts)}"

    found: dict[str, None] = {}
    for _ in range(2 * count):  # some come twice
        kind = choice.random()
        if kind < 0.6 or not (functions and passages):
            question = about_topics()
        elif kind < 0.7:
            question = sums()
        else:
            question = shown(FUNCTIONS, functions) if kind < 0.82 else shown(PASSAGES, passages)
        found[question] = None
        if len(found) == count:
            break
    return list(found)


def _names(topics: str) -> list[str]:
    return re.split(r"[;\n]\s*", topics)


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of plain sentences in a source file's docstrings."""
    found = (" ".join(part.split()) for part in re.split(r'\n\s*\n|"""', text))
    plain = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()\-]{40,}[a-z]\. [A-Z][A-Za-z0-9 ,.;:'()\-]{40,}\.")
    return [part for part in found if 120 < len(part) < 600 and plain.fullmatch(part)]


@torch.no_grad()
def answers(target: LanguageModel, questions: list[str], temperature: float, seed: int, most: int = 256) -> np.ndarray:
    """The conversations, each a question and the target's answer of at most `most` tokens, one after the other, by
    transformers; beside each token, whether the target wrote it. uint16 [N, 2]
    """
    torch.manual_seed(seed)
    prompts, end = [target.chat(question) for question in questions], target.tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts], device=target.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=target.device)
    options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    written = target.model.generate(ids, attention_mask=mask, max_new_tokens=most, pad_token_id=end, **options)
    rows = []
    for prompt, row in zip(prompts, written[:, longest:].tolist(), strict=True):
        rows += [(token, 0) for token in prompt]
        rows += [(token, 1) for token in row[: row.index(end) + 1 if end in row else len(row)]]
    return np.array(rows, dtype=np.uint16)


def own_text(
    target: LanguageModel, weights: str, questions: list[str], amount: int, cache: Path, seed: int = 0
) -> np.ndarray:
    """At least `amount` tokens of `answers`, two thirds of them at temperature 1 and a third at 0.6, kept in `cache`
    batch by batch, so that it goes on after a kill. weights: the hash of the target's file. uint16 [N, 2]
    """
    rows = min(len(questions), 2048 if target.device.type == "cuda" else 64)
    what, pieces, order = digest(weights, *questions, code_version("training")), [], random.Random(seed)
    with tqdm(total=amount, desc=f"{target.name} answers", unit="tok", unit_scale=True) as bar:
        while sum(map(len, pieces)) < amount:
            number, chosen = len(pieces), order.sample(questions, rows)
            path, heat = cache / f"answers-{what}-{rows}-{seed}-{number}.npy", 0.6 if number % 3 == 2 else 1.0
            pieces.append(np.array(kept(path, lambda c=chosen, h=heat, n=number: answers(target, c, h, seed + n))))
            bar.update(len(pieces[-1]))
    return np.concatenate(pieces)


def conversations(target: LanguageModel, weights: str, cache: Path, amount: int = 4_000_000) -> Corpus:
    """What readers of a chat model learn from: about `amount` tokens of `own_text`, and 100,000 held out, as far as the
    questions reach.
    """
    learnt, held_out = split(python_source())
    asked, kept_back = questions(learnt, held_out)
    documents = ([Document("answers", "questions", "\n".join(texts))] for texts in (asked, kept_back))
    texts = own_text(target, weights, asked, amount, cache), own_text(target, weights, kept_back, 100_000, cache, 1)
    tokens, written = zip(*((text[:, 0], text[:, 1] > 0) for text in texts), strict=True)
    return Corpus(target.tokenizer, *documents, *tokens, *written)
