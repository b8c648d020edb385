"""CUDA source compiled at use by NVRTC, and launched by the driver: no toolkit is needed.

Torch for CUDA brings NVRTC along. `KernelError` where anything of it is missing or fails.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

_THREADS: Final = 128


class KernelError(RuntimeError):
    """Source that cannot be compiled, loaded or launched here."""


class Kernel:
    """A compiled function, in the context of the device that was current when it was loaded."""

    def __init__(self, code: bytes, name: str) -> None:
        self._driver = _library("libcuda.so.1", "nvcuda.dll")
        self._loaded, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        load, get = self._driver.cuModuleLoadData, self._driver.cuModuleGetFunction
        self._check(load(ctypes.byref(self._loaded), code))
        self._check(get(ctypes.byref(self._function), self._loaded, name.encode()))

    def launch(self, threads: int, arguments: Sequence[Any]) -> None:
        """Run at least so many threads in torch's current stream; the arguments are C values."""
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.cast(ctypes.pointer(x), ctypes.c_void_p) for x in arguments)
        )
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = [ctypes.c_uint(x) for x in (-(-threads // _THREADS), 1, 1, _THREADS, 1, 1, 0)]
        launch = self._driver.cuLaunchKernel
        self._check(launch(self._function, *sizes, stream, pointers, None))

    def _check(self, status: int) -> None:
        if status:
            message = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(message))
            raise KernelError(f"CUDA driver: {(message.value or b'unknown').decode()} ({status})")


def compiled(source: str, name: str, architecture: str) -> bytes:
    """Machine code for an architecture such as `sm_90`, of IEEE operations as they are written."""
    version = (torch.version.cuda or "13").split(".")[0]
    nvrtc = _library(f"libnvrtc.so.{version}", "libnvrtc.so", f"nvrtc64_{version}0_0.dll")
    flags = (
        f"--gpu-architecture={architecture}",
        "--fmad=false",  # every operation rounds as numpy's does
        "--std=c++17",
        "-default-device",
    )
    program = ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None
    )
    if made:
        raise KernelError(f"NVRTC: no program ({made})")
    try:
        options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        if nvrtc.nvrtcCompileProgram(program, len(flags), options):
            log = _bytes_of(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise KernelError(f"NVRTC: {log.decode(errors='replace')[:2000]}")
        return _bytes_of(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes_of(size_of: Any, content_of: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    content_of(program, content)
    return content.raw


def _library(*names: str) -> ctypes.CDLL:
    """A library by its name, or where NVIDIA's wheels put it."""
    folders = sorted((Path(torch.__file__).parent.parent / "nvidia").glob("*/lib"))
    for name in (*names, *(str(folder / name) for folder in folders for name in names)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise KernelError(f"{names[0]}: not found")
