"""What a training keeps on disk: whole at any moment, and taken up again only by the training that it belongs to."""

import json
from pathlib import Path

import numpy as np
import pooch
import torch

from ..errors import FileError, TrainingError
from ..files import code_version, differing, digest, reading, replacing, write_text


def identity(tokenizer, *data, files: tuple[Path, ...] = (), **settings) -> dict:
    """All that decides what a training comes to, as a flat dict: settings, tokenizer, data (texts or arrays), weights in `files` that are there, code."""
    weights = {file.parent.name: pooch.file_hash(str(file)) for file in files if file.exists()}
    words = digest(tokenizer.backend_tokenizer.to_str()) if tokenizer else None
    pieces = (piece if isinstance(piece, str) else np.ascontiguousarray(piece) for piece in data)
    return {**settings, "corpus": digest(*pieces), "tokenizer": words, "weights": weights, "code": code_version("training")}


def load_state(path: Path, identity: dict, device: torch.device) -> dict | None:
    """What `save_state` kept, or None if there is nothing. Raises TrainingError if it is damaged or belongs to another training."""
    if not path.exists():
        return None
    with reading(path, "delete it to start afresh", TrainingError):
        state = torch.load(path, map_location=device, weights_only=True)
        found = state.get("identity")
    if found != identity:
        raise TrainingError(f"{path} belongs to another training (other {differing(found, identity)}); delete it to start afresh, or choose another --out")
    return state


def save_state(path: Path, identity: dict, **state) -> None:
    """Keeps a state, in the place of the one before. Raises FileError if it cannot be written."""
    with replacing(path) as partial:
        try:
            torch.save({"identity": identity, **state}, partial)
        except RuntimeError as error:  # torch's own word for a full disk
            raise FileError(f"cannot write {path}: {str(error).partition(chr(10))[0]}; the state before it is as it was") from error


def save_card(path: Path, card: dict, identity: dict) -> None:
    """Writes card.json into a model's folder, last of all: a folder with a card is a finished model."""
    write_text(path / "card.json", json.dumps({**card, "identity": identity}, indent=1) + "\n")


def finished(path: Path, **settings) -> bool:
    """Whether a model is finished, and says so. Raises TrainingError for one that was made with other settings, as far as its card tells them."""
    card = path / "card.json"
    if not card.exists():
        return False
    with reading(card, f"delete {path} to make it again", TrainingError):
        made = json.loads(card.read_text("utf-8")).get("identity", settings)
    if any(made.get(key) != value for key, value in settings.items()):
        raise TrainingError(f"{path} was made with other settings (other {differing(made, settings)}); delete it to make it again, or choose another --out")
    print(f"{path.name}: finished already, in {path}")
    return True
