"""What a training keeps on disk: whole at any moment, and taken up again only by the training that it belongs to."""

import json
from pathlib import Path

import numpy as np
import pooch
import torch

from ..errors import FileError, TrainingError
from ..files import code_version, differing, digest, reading, replacing, write_text


def identity(tokenizer, *data, files: tuple[Path, ...] = (), **settings) -> dict:
    """All that decides what a training comes to: settings, tokenizer, data (texts, arrays), weights in `files`,
    code.
    """
    weights = {file.parent.name: pooch.file_hash(str(file)) for file in files if file.exists()}
    words = digest(tokenizer.backend_tokenizer.to_str()) if tokenizer else None
    pieces = (piece if isinstance(piece, str) else np.ascontiguousarray(piece) for piece in data)
    return {
        **settings,
        "corpus": digest(*pieces),
        "tokenizer": words,
        "weights": weights,
        "code": code_version("training"),
    }


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
            raise FileError(
                f"cannot write {path}: {str(error).splitlines()[0]}; what was there is as it was"
            ) from error


def save_card(path: Path, card: dict, identity: dict) -> None:
    """Writes card.json into a model's folder, last of all: a folder with a card is a finished model."""
    write_text(path / "card.json", json.dumps({**card, "identity": identity}, indent=1) + "\n")


def need(name: str, folder: Path) -> None:
    """Raises TrainingError unless the model in `folder`, which the training of `name` starts from, is finished."""
    if not (folder / "card.json").exists():
        raise TrainingError(f"{name} needs {folder.name}, which is not in {folder.parent}; train it first")


def finished(path: Path, **settings) -> bool:
    """Whether a model is finished, and says so. Raises TrainingError for one of other settings, if its card tells
    them.
    """
    card = path / "card.json"
    if not card.exists():
        return False
    with reading(card, f"delete {path} to make it again", TrainingError):
        made = json.loads(card.read_text("utf-8")).get("identity", settings)
    if any(made.get(key) != value for key, value in settings.items()):
        other = differing(made, settings)
        raise TrainingError(f"{path} was made in another way (other {other}); delete it, or choose another --out")
    print(f"{path.name}: finished already, in {path}")
    return True
