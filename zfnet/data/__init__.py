"""Images: rendered scenes, folders of photographs, their preprocessing, and batches."""

from zfnet.data.batches import Batch, Batches
from zfnet.data.hugging_face import HuggingFace
from zfnet.data.images import Images, Truth, as_images
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.data.web_dataset import WebDataset
from zfnet.errors import BrokenImage

__all__ = [
    "Batch",
    "Batches",
    "BrokenImage",
    "HuggingFace",
    "Images",
    "Photos",
    "Preprocessing",
    "Scenes",
    "Truth",
    "WebDataset",
    "as_images",
]
