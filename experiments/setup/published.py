"""The networks that come with the sources, in `published/`, and their checksums."""

from pathlib import Path

from zfnet.errors import InputError

FOLDER = Path(__file__).resolve().parent.parent.parent / "published"


def checksums() -> dict[str, str]:
    """The SHA-256 of each file, as `sha256sum` prints them. InputError where the list is damaged, or not there."""
    try:
        lines = (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        return {name: digits for digits, name in (line.split() for line in lines)}
    except (OSError, ValueError):
        reason = f"cannot read {FOLDER / 'SHA256SUMS'}, the list of the published networks"
        raise InputError(f"{reason}: take it from the repository, or give model.weights=trained") from None


def find(model: str, data: str | None) -> dict[str, str]:
    """The file of a model's weights, by the data that it was trained on, and its checksum.

    InputError if there is none.
    """
    name, known = f"{model}-{data}.safetensors", checksums()
    if name not in known:
        available = ", ".join(sorted(file.removesuffix(".safetensors") for file in known))
        raise InputError(
            f"no weights of {model} are published for these images, only for {available}; "
            "give model.weights=trained, a file, or, for a network of torchvision or timm, DEFAULT"
        )
    return {"weights": str(FOLDER / name), "sha256": known[name]}
