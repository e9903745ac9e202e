"""torch's reader of sharded tensors without its trust: a .metadata file is a pickle, and may come from anywhere."""

import pickle
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from engine.files import first_line

# What torch writes into .metadata. A pickle that names anything else is not opened.
_METADATA = (
    "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex "
    "StorageMeta _MEM_FORMAT_ENCODING"
)
_PLAIN = {("torch.distributed.checkpoint.metadata", name) for name in _METADATA.split()} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
}
# Where the state lay when it was written. Neither kind of path can be made on the other system, their pure forms can.
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return _PATHS[name]
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _PLAIN and not is_dtype:
            raise ValueError(f"it names {module}.{name}, which is not part of a checkpoint")
        return super().find_class(module, name)


class PlainReader(dcp.FileSystemReader):
    """torch's reader, which would run any code that a .metadata file holds."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            with open(file, "rb") as stream:
                metadata = _PlainUnpickler(stream).load()
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            files = {info.relative_path for info in metadata.storage_data.values()}
            if any(PureWindowsPath(name).name != name for name in files) or not isinstance(metadata, Metadata):
                raise ValueError("it points outside its folder")
        except Exception as error:  # a pickle can break in any way
            raise ValueError(f"{file}: not readable as the list of a state's tensors ({first_line(error)})") from None
        return metadata
