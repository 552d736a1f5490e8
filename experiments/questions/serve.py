"""Serve an atlas on this machine, with a page for your own pictures: what does this network see in them?

Open the printed address in a browser. Nothing is stored; docs/security.md lists what is refused.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

from torch import nn

from experiments.setup.hints import Limits

Port = Annotated[int, Limits(0, 65535)]


def main(
    model: nn.Module, out: str | Path, *, atlas: str | None = None, port: Port = 8000, host: str = "127.0.0.1"
) -> None:
    """Serve an atlas until Ctrl-C.

    Args:
        model: the network that the atlas was made with.
        out: not used: nothing is written.
        atlas: the folder of the atlas; null: outputs/atlas/<model>-<data>.
        port: of the server; 0: any free port.
        host: the address to listen on; 127.0.0.1: only this machine can reach it.
    """
    from zfnet.atlas.answers import Answers
    from zfnet.atlas.server import is_local, serve

    folder = Path(out).parent.parent / "atlas" / Path(out).name if atlas is None else Path(atlas).expanduser()
    answers = Answers(model, folder)
    if not is_local(host):
        who = "anybody who can reach this machine can use it, without a password"
        print(f"run.py: host={host}: {who}", file=sys.stderr)
    try:
        serve(answers, host=host, port=port, ready=lambda address: _say(folder, address))
    except KeyboardInterrupt as stop:
        if stop.args not in ((), (signal.SIGINT,)):
            raise
    print("\nserve: ended")  # also where the server took the signal for itself


def _say(folder: Path, address: str) -> None:
    print(f"{folder} at {address}#/own; Ctrl-C ends it", flush=True)
