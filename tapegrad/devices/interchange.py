"""Device arrays of other libraries: ``__cuda_array_interface__`` and DLPack."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from ..errors import at_caller

DTYPES = ("float64", "float32", "uint32")

_CPU, _CUDA, _MANAGED = 1, 2, 13  # devices, by DLPack
_KINDS = {0: "i", 1: "u", 2: "f"}  # kinds of numbers, by DLPack


# Capsules are passed by address: one that is about to end has no references left to count.
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


class Foreign(NamedTuple):
    """Where an array is: address, shape, dtype."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def stream_number(stream: Any) -> int | None:
    """Return the driver's number of a stream of Numba, CuPy, PyTorch, or of a number itself."""
    if stream is None or isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        found = getattr(stream, name, None)
        if found is not None:
            return int(getattr(found, "value", found) or 0)
    raise TypeError(
        f"a stream is the number that the CUDA driver has for it, or an object of Numba, CuPy or "
        f"PyTorch, not {type(stream).__name__}{at_caller()}"
    )


def read(array: Any, driver: Any, stream: int | None) -> Foreign:
    """Return where an array is; wait for the stream that computes it, where that is another."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        found = _from_interface(interface)
        other = interface.get("stream")
        if other is not None and other != (stream or 1):
            driver.wait_for(None if other == 1 else other)
    elif hasattr(array, "__dlpack__") and _on_device(array, driver):
        on_host = int(array.__dlpack_device__()[0]) == _CPU  # the simulator's device
        found = _from_capsule(
            array.__dlpack__() if on_host else array.__dlpack__(stream=stream or 1)
        )
    else:
        raise TypeError(
            f"{type(array).__name__} is not an array on a CUDA device: it has no "
            f"__cuda_array_interface__ and is not there by DLPack; copy it with "
            f"device.put(...){at_caller()}"
        )
    if found.dtype.name not in DTYPES or not found.dtype.isnative:
        raise TypeError(
            f"kernels run on float64 and float32, not on an array of {found.dtype}{at_caller()}"
        )
    return found


def _from_interface(interface: dict[str, Any]) -> Foreign:
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    _need_contiguous(shape, strides, dtype.itemsize)
    return Foreign(int(interface["data"][0] or 0), shape, dtype)


def _need_contiguous(shape: tuple[int, ...], strides: Any, step: int) -> None:
    if strides is None or 0 in shape:
        return
    for n, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if n != 1 and stride != step:
            raise ValueError(
                f"elements of a device array must lie one after another in C order; an array of "
                f"shape {shape} has strides {tuple(strides)}: make a contiguous copy{at_caller()}"
            )
        step *= n


# -- DLPack: the memory layout of its structures ---------------------------------------------------


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


def _on_device(array: Any, driver: Any) -> bool:
    kind, _ = array.__dlpack_device__()
    return int(kind) in ((_CPU,) if driver.name == "CUDA simulator" else (_CUDA, _MANAGED))


def _from_capsule(capsule: Any) -> Foreign:
    """Read a capsule. It is left unconsumed, and so freed with the object; the array lives on."""
    tensor = _Tensor.from_address(_pointer_in(id(capsule), b"dltensor"))
    if tensor.lanes != 1 or tensor.code not in _KINDS:
        raise TypeError(f"a DLPack array of vectors or of unknown numbers{at_caller()}")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    _need_contiguous(shape, strides, 1)
    return Foreign((tensor.data or 0) + tensor.offset, shape, dtype)


# -- DLPack outward --------------------------------------------------------------------------------


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_lent: dict[int, tuple[Any, ...]] = {}
"""What other libraries hold, by the address of its structure: that, and all that it points to."""


def _let_go(address: int) -> None:
    _lent.pop(address, None)


def _capsule_ends(capsule: int) -> None:
    """Free what a capsule holds, if nobody has taken it out."""
    if _is_valid(capsule, b"dltensor"):
        _lent.pop(_pointer_in(capsule, b"dltensor"), None)


_deleter, _destructor = map(ctypes.CFUNCTYPE(None, ctypes.c_void_p), (_let_go, _capsule_ends))


def device_by_dlpack(driver: Any) -> tuple[int, int]:
    """Return what DLPack calls a device: its kind and its number."""
    return (_CPU, 0) if driver.name == "CUDA simulator" else (_CUDA, driver.number)


def capsule_of(array: Any, driver: Any) -> Any:
    """Return a capsule of DLPack for a contiguous array, which it keeps alive."""
    shape = (ctypes.c_int64 * max(len(array.shape), 1))(*array.shape)
    managed = _Managed()
    tensor = managed.tensor
    tensor.data, tensor.ndim, tensor.shape = array.address, len(array.shape), shape
    tensor.device[:] = device_by_dlpack(driver)
    tensor.code = {kind: code for code, kind in _KINDS.items()}[array.dtype.kind]
    tensor.bits, tensor.lanes = 8 * array.dtype.itemsize, 1
    managed.deleter = ctypes.cast(_deleter, ctypes.c_void_p)
    address = ctypes.addressof(managed)
    _lent[address] = managed, shape, array
    return _new_capsule(address, b"dltensor", ctypes.cast(_destructor, ctypes.c_void_p))
