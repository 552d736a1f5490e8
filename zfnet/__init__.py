"""What has this convnet learned?  Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV
2014)."""

from zfnet.analysis.occlusion import OcclusionMaps, occlusion_maps
from zfnet.deconvnet import Deconvnet, Patches, project_top
from zfnet.errors import InputError
from zfnet.graph import Graph
from zfnet.model import ZFNet
from zfnet.operations import DECONVNET, GRADIENT, GUIDED, Operation, rule
from zfnet.receptive_fields import ReceptiveField, layer_table, receptive_field
from zfnet.recording import Recording
from zfnet.scanning import scan
from zfnet.switches import SwitchMaxPool2d, pool, unpool
from zfnet.winners import TopActivations, Units

__all__ = [
    "DECONVNET",
    "GRADIENT",
    "GUIDED",
    "Deconvnet",
    "Graph",
    "InputError",
    "OcclusionMaps",
    "Operation",
    "Patches",
    "ReceptiveField",
    "Recording",
    "SwitchMaxPool2d",
    "TopActivations",
    "Units",
    "ZFNet",
    "layer_table",
    "occlusion_maps",
    "pool",
    "project_top",
    "receptive_field",
    "rule",
    "scan",
    "unpool",
]
