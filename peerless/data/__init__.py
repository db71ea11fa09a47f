"""Data, from a source to every peer's bucket: `load`, `prepare`, `upload`. Importing reads and fetches nothing."""

from peerless.data.dataset import Dataset
from peerless.data.newcomer import Preprocessing, prepare_newcomer
from peerless.data.npz import to_npz
from peerless.data.prepared import Prepared, prepare
from peerless.data.sources import load
from peerless.data.torch_dataset import from_torch_dataset
from peerless.data.upload import LOCAL_OBJECT_BYTES, OBJECT_BYTES, UploadResult, upload, upload_partition

__all__ = [
    "LOCAL_OBJECT_BYTES",
    "OBJECT_BYTES",
    "Dataset",
    "Prepared",
    "Preprocessing",
    "UploadResult",
    "from_torch_dataset",
    "load",
    "prepare",
    "prepare_newcomer",
    "to_npz",
    "upload",
    "upload_partition",
]
