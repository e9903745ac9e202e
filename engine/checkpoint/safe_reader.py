"""Read sharded tensors without running pickled code: .metadata is a pickle, and may come from anywhere."""

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
# The folder that the state was written to. A path of the other system cannot be made here, its pure form can.
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Look up a class of the pickle; ValueError if a checkpoint has no use for it."""
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return _PATHS[name]
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _PLAIN and not is_dtype:
            raise ValueError(f"it names {module}.{name}, which is not part of a checkpoint")
        return super().find_class(module, name)


class PlainReader(dcp.FileSystemReader):
    """FileSystemReader that refuses code in .metadata and tensors outside the folder."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        """Read the list of tensors; ValueError if it is damaged, names code or points outside its folder."""
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
