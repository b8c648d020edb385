"""NVRTC and the driver as they are called: C libraries with the very functions, and no GPU.

tests/client/dpsgd/gpu/test_stream.py compiles and runs the real kernel where they are.
"""

import ctypes
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from client.dpsgd.gpu import nvrtc
from client.dpsgd.gpu.nvrtc import KernelError, Kernels, compiled

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

LIBRARY = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>
static char source[4096], result[8192], log_[] = "x.cu(1): error";
static int failed, open_;
int nvrtcCreateProgram(void **p, const char *text, const char *name, int n, void *h, void *i) {
    if (!*text) return 5;
    strncpy(source, text, 4095); open_++; *p = source; (void)name; (void)n; (void)h; (void)i;
    return 0;
}
int nvrtcCompileProgram(void *p, int n, const char **flags) {
    (void)p; failed = strstr(source, "error") != NULL;
    strcpy(result, source);
    for (int i = 0; i < n; i++) { strcat(result, "|"); strcat(result, flags[i]); }
    return failed ? 6 : 0;
}
int nvrtcGetProgramLogSize(void *p, size_t *n) { (void)p; *n = sizeof log_; return 0; }
int nvrtcGetProgramLog(void *p, char *to) { (void)p; memcpy(to, log_, sizeof log_); return 0; }
int nvrtcGetCUBINSize(void *p, size_t *n) { (void)p; *n = strlen(result); return 0; }
int nvrtcGetCUBIN(void *p, char *to) { (void)p; memcpy(to, result, strlen(result)); return 0; }
int nvrtcDestroyProgram(void **p) { *p = NULL; open_--; return 0; }
int programs_left(void) { return open_; }
int cuModuleLoadData(void **m, const char *code) { *m = (void *)code; return *code ? 0 : 200; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
    *f = m; return strcmp(name, "there") ? 500 : 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    long *to = **(long ***)arguments; (void)f; (void)stream;
    to[0] = gx; to[1] = bx; to[2] = gy * gz * by * bz; to[3] = shared;
    to[4] = *(int *)arguments[1]; to[5] = extra == NULL;
    return gx > 1000 ? 719 : 0;
}
int cuGetErrorString(int status, const char **text) {
    *text = status == 500 ? "named symbol not found" : NULL; return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("library")
    (folder / "stub.c").write_text(LIBRARY)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(folder / "stub.so"), str(folder / "stub.c")],
        check=True,
    )
    return ctypes.CDLL(str(folder / "stub.so"))


@pytest.fixture(autouse=True)
def _in_place(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_library", lambda *names: library)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())


def test_source_is_compiled_for_the_architecture_without_fused_operations(
    library: ctypes.CDLL,
) -> None:
    text, *flags = compiled("kernel", "x", "sm_90").decode().split("|")
    assert text == "kernel"
    assert flags[:2] == ["--gpu-architecture=sm_90", "--fmad=false"]
    assert library.programs_left() == 0


def test_what_cannot_be_compiled_is_told_in_the_compilers_words(library: ctypes.CDLL) -> None:
    with pytest.raises(KernelError, match=r"NVRTC: x\.cu\(1\): error"):
        compiled("an error", "x", "sm_90")
    assert library.programs_left() == 0
    with pytest.raises(KernelError, match=r"NVRTC: no program \(5\)"):
        compiled("", "x", "sm_90")


def test_a_kernel_is_launched_with_its_arguments_and_enough_threads() -> None:
    told = (ctypes.c_long * 6)()
    Kernels(b"code", ["there"], 0).launch("there", 300, [ctypes.pointer(told), ctypes.c_int(42)])
    assert list(told) == [3, 128, 1, 0, 42, 1]  # 3 blocks of 128 threads hold 300


def test_what_the_driver_refuses_is_told() -> None:
    with pytest.raises(KernelError, match=r"CUDA driver: named symbol not found \(500\)"):
        Kernels(b"code", ["elsewhere"], 0)
    with pytest.raises(KernelError, match=r"CUDA driver: unknown \(200\)"):
        Kernels(b"", ["there"], 0)
    told = (ctypes.c_long * 6)()
    with pytest.raises(KernelError, match="719"):
        Kernels(b"code", ["there"], 0).launch(
            "there", 1_000_000, [ctypes.pointer(told), ctypes.c_int(1)]
        )


def test_a_library_is_looked_for_beside_torch_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL
) -> None:
    monkeypatch.undo()
    place = tmp_path / "nvidia" / "cuda" / "lib"
    place.mkdir(parents=True)
    shutil.copy(library._name, place / "libstub-of-ours.so")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    found = nvrtc._library("libstub-of-ours.so")
    assert found.programs_left() == 0
    with pytest.raises(KernelError, match=r"libnot-here\.so: not found"):
        nvrtc._library("libnot-here.so")
