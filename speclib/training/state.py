"""What a training keeps on disk: whole at any moment, and taken up again only by the training that it belongs to."""

import json
from pathlib import Path

import pooch
import torch

from ..errors import FileError, TrainingError
from ..files import code_version, differing, digest, reading, replacing, write_text
from .corpus import Corpus


def identity(recipe, corpus: Corpus, seed: int, *needed: Path, **more) -> dict:
    """All that decides what a training comes to: recipe, seed, corpus, tokenizer, weights of the models that are
    `needed`, code (that of the modules which are trained lies in drafters). Raises TrainingError if one of those is
    not finished.
    """
    for folder in needed:
        if not (folder / "card.json").exists():
            raise TrainingError(f"{recipe.name} needs {folder.name}, which is not in {folder.parent}; train it first")
    weights = {folder.name: pooch.file_hash(str(folder / "model.safetensors")) for folder in needed}
    what = {"recipe": repr(recipe), "seed": seed, "corpus": corpus.digest, "weights": weights}
    words = digest(corpus.tokenizer.backend_tokenizer.to_str())
    return {**what, "tokenizer": words, "code": code_version("training", "drafters"), **more}


def load_state(path: Path, identity: dict, device: torch.device) -> dict | None:
    """What `save_state` kept, or None. Raises TrainingError if it is damaged or belongs to another training."""
    if not path.exists():
        return None
    with reading(path, "delete it to start afresh", TrainingError):
        state = torch.load(path, map_location=device, weights_only=True)
        found = state.get("identity")
    if found != identity:
        other = differing(found, identity)
        raise TrainingError(f"{path} belongs to another training (other {other}); delete it, or choose another --out")
    return state


def save_state(path: Path, identity: dict, **state) -> None:
    """Keeps a state, in the place of the one before. Raises FileError if it cannot be written."""
    with replacing(path) as partial:
        try:
            torch.save({"identity": identity, **state}, partial)
        except RuntimeError as error:  # torch's own word for a full disk
            problem = f"cannot write {path}: {str(error).splitlines()[0]}"
            raise FileError(f"{problem}; what was there is as it was") from error


def save_card(path: Path, card: dict, identity: dict) -> None:
    """Writes card.json into a model's folder, last of all: a folder with a card is a finished model."""
    write_text(path / "card.json", json.dumps({**card, "identity": identity}, indent=1) + "\n")


def read_card(path: Path) -> dict:
    """The card in a model's folder. Raises TrainingError if it is damaged."""
    with reading(path / "card.json", f"delete {path} to make it again", TrainingError):
        return dict(json.loads((path / "card.json").read_text("utf-8")))


def finished(path: Path, **settings) -> bool:
    """Whether a model is finished, and says so. Raises TrainingError for one of other settings, if its card tells
    them.
    """
    if not (path / "card.json").exists():
        return False
    made = read_card(path).get("identity", settings)
    if any(made.get(key) != value for key, value in settings.items()):
        other = differing(made, settings)
        raise TrainingError(f"{path} was made in another way (other {other}); delete it, or choose another --out")
    print(f"{path.name}: finished already, in {path}")
    return True
