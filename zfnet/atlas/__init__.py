"""The atlas: every feature map of every layer of a network, in a folder that opens in a browser."""

from zfnet.atlas.build import build


def check(*a, **k): ...  # type: ignore


__all__ = ["build", "check"]
