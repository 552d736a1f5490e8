"""The choices of a group, `data=photos`: files of `conf/`, and of models those that others publish."""

from hydra.core.override_parser.types import ChoiceSweep, Override

from experiments.setup.configuration import CONF, add_model, has_file
from zfnet.errors import InputError, unknown_name

GROUPS = {"experiment": "experiment", "model": "model", "data": "data set", "train": "train"}


def names(group: str) -> list[str]:
    """Those of `conf/`; as models, torchvision's classifiers too."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    if group == "model":
        from experiments.setup.models import classifiers

        files |= set(classifiers())
    return sorted(files)


def choices(override: Override) -> list[str]:
    """The names chosen in a group; InputError for one that it does not have."""
    group, value = override.key_or_group, override.value()
    chosen = list(map(str, value.list if isinstance(value, ChoiceSweep) else [value]))
    for name in chosen:
        known = add_model(name) if group == "model" else has_file(group, name)
        if not known and not (group.startswith("hydra/") and name.isidentifier()):  # which Hydra looks up
            error = unknown_name(GROUPS.get(group, group), name, names(group))
            own = f"; for a class of your own, give model._target_={name}" if group == "model" and "." in name else ""
            raise InputError(f"{error}{own}")
    return chosen
