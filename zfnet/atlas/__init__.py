"""The atlas: every feature map of every layer of a network, in a folder that opens in a browser."""

from zfnet.atlas.build import build
from zfnet.atlas.check import Differences, check
from zfnet.atlas.show import Panel, show

__all__ = ["Differences", "Panel", "build", "check", "show"]
