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


class Kernels:
    """Compiled functions of the CUDA device `index`, which must be the current one."""

    def __init__(self, code: bytes, names: Sequence[str], index: int) -> None:
        self._index = index
        self._driver = _library("libcuda.so.1", "nvcuda.dll")
        self._loaded = ctypes.c_void_p()
        load, get = self._driver.cuModuleLoadData, self._driver.cuModuleGetFunction
        self._check(load(ctypes.byref(self._loaded), code))
        self._functions = {name: ctypes.c_void_p() for name in names}
        for name, function in self._functions.items():
            self._check(get(ctypes.byref(function), self._loaded, name.encode()))

    def launch(self, name: str, threads: int, arguments: Sequence[Any]) -> None:
        """Run at least so many threads in torch's current stream; the arguments are C values.

        It waits for nothing; the values are copied at once.
        """
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.cast(ctypes.pointer(x), ctypes.c_void_p) for x in arguments)
        )
        sizes = [ctypes.c_uint(x) for x in (-(-threads // _THREADS), 1, 1, _THREADS, 1, 1, 0)]
        launch = self._driver.cuLaunchKernel
        with torch.cuda.device(self._index):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self._check(launch(self._functions[name], *sizes, stream, pointers, None))

    def _check(self, status: int) -> None:
        if status:
            message = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(message))
            raise KernelError(f"CUDA driver: {(message.value or b'unknown').decode()} ({status})")


def compiled(source: str, name: str, architecture: str) -> bytes:
    """Machine code for an architecture such as `sm_90`, of IEEE operations as they are written."""
    version = (torch.version.cuda or "13").split(".")[0]
    for builtins in sorted(f for x in _folders() for f in x.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins))  # NVRTC opens it by its name alone, which finds what is loaded
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


def _folders() -> list[Path]:
    """Where NVIDIA's wheels put libraries."""
    return sorted((Path(torch.__file__).parent.parent / "nvidia").glob("*/lib"))


def _library(*names: str) -> ctypes.CDLL:
    """A library by its name, or where NVIDIA's wheels put it."""
    for name in (*names, *(str(folder / name) for folder in _folders() for name in names)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise KernelError(f"{names[0]}: not found")
