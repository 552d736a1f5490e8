"""Read the folder of an atlas: what a browser reads as scripts, read as data.

A data file is one line, `atlas.put("index", {...});`: a name and JSON. Each file's digest is in files.json, and is
compared when the file is read: a damaged file raises an error that names it.
"""

import hashlib
import hmac
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from zfnet.atlas.writing import FORMAT, read_script
from zfnet.errors import InputError, first_line
from zfnet.files import open_regular

MOST = 2**28  # bytes of a file that is read


class AtlasFolder:
    """An atlas in a folder.

    Raises:
        InputError: naming the file, if one is missing, damaged or of another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"no atlas in {self.path}: make one with experiment=atlas, or give atlas=FOLDER")

    def _content(self, name: str) -> bytes:
        with open_regular(self.path / name) as file:
            try:
                content = file.read(MOST + 1)
            except OSError as error:
                raise InputError(f"cannot read {self.path / name}: {first_line(error)}") from None
        if len(content) > MOST:
            raise InputError(f"{self.path / name} has more than the {MOST:,} bytes that are read")
        return content

    def read(self, name: str) -> bytes:
        """The content of a file of the atlas, by its path from the folder with forward slashes."""
        known = self.files.get(name)
        if known is None:
            raise self._damaged(name, "files.json does not have it")
        content = self._content(name)
        if not hmac.compare_digest(hashlib.blake2b(content, digest_size=len(known) // 2).hexdigest(), known):
            raise self._damaged(name, "it is not what files.json says")
        return content

    def put(self, name: str) -> Any:
        """The value that a data file has, by its name in the browser: "index", "columns/0", "maps/0/2"."""
        folder, _, number = name.partition("/")
        file = {"columns": f"data/{number}/columns.js", "maps": f"data/{number}.js"}.get(folder, f"data/{name}.js")
        content = self.read(file)
        try:
            found, value = read_script(content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(file, first_line(error)) from None
        if found != name:
            raise self._damaged(file, f"it is {found}")
        return value

    def _damaged(self, name: str, why: str) -> InputError:
        return InputError(f"{self.path / name} is damaged ({why}); make the atlas again")

    @cached_property
    def files(self) -> dict[str, str]:
        """The digest (hex) of each file, by its path."""
        try:
            files = json.loads(self._content("files.json"))
            if not isinstance(files, dict) or not all(re.fullmatch("([0-9a-f]{2}){8,64}", d) for d in files.values()):
                raise ValueError("it has no digests")
        except InputError:
            raise InputError(f"no atlas in {self.path}: it has no files.json; experiment=atlas makes one") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged("files.json", first_line(error)) from None
        return files

    @cached_property
    def index(self) -> dict[str, Any]:
        """What the atlas is of, its network, images and layers."""
        index = self.put("index")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            number = index.get("format") if isinstance(index, dict) else None
            raise InputError(f"{self.path} is an atlas of format {number}, but this version reads format {FORMAT}")
        return index

    @cached_property
    def images(self) -> dict[str, Any]:
        """The images that are among the nine of any map, or among its examples."""
        images: dict[str, Any] = self.put("images")
        return images

    def columns(self, layer: int) -> dict[str, list[Any]]:
        """One list for each number of the maps of a layer (by its number from 0)."""
        columns: dict[str, list[Any]] = self.put(f"columns/{layer}")
        return columns

    def maps(self, layer: int) -> list[dict[str, Any]]:
        """All maps of a layer (by its number from 0), in the order of its rows."""
        about = self.index["layers"][layer]
        rows, per = about["rows"], about["per"]["maps"]
        maps = [entry for number in range(-(-rows // per)) for entry in self.put(f"maps/{layer}/{number}")]
        if len(maps) != rows:
            raise InputError(f"{self.path} has {len(maps)} maps of layer {about['name']}, not {rows}; make it again")
        return maps
