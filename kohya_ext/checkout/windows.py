"""The processes of a Windows machine: what /proc tells elsewhere, read through the system's own calls.

Command line, folder and variables of another process are in its own memory, at offsets that have been the same in every
64-bit Windows. What may not be opened (another user's, a protected one) is skipped; what looks odd is, too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 1 << 20  # bytes of one text of a process; the system's own limits are 64 KiB a string, less than this in all

_PROCESS_QUERY_INFORMATION = 0x400
_PROCESS_VM_READ = 0x10
_SNAPSHOT_OF_PROCESSES = 0x2
_INVALID_HANDLE = ctypes.c_void_p(-1).value
_POINTER = 8

# In the block that describes a process, and in its parameters (64-bit).
_PARAMETERS = 0x20
_FOLDER, _IMAGE, _COMMAND_LINE, _ENVIRONMENT, _ENVIRONMENT_SIZE = 0x38, 0x60, 0x70, 0x80, 0x3F0


@dataclass(frozen=True)
class Listed:
    """An entry in the system's list of processes; program: the bare name of its file."""

    pid: int
    parent: int
    program: str


@dataclass(frozen=True)
class Details:
    """What a process was started with. image: the whole path of its program."""

    arguments: tuple[str, ...]
    folder: str
    image: str
    environ: dict[str, str]


class _Entry(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("usage", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("heap", ctypes.c_size_t),
        ("module", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("parent", ctypes.c_uint32),
        ("priority", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("program", ctypes.c_wchar * 260),
    )


class _Basic(ctypes.Structure):
    _fields_ = (("status", ctypes.c_void_p), ("block", ctypes.c_void_p), ("rest", ctypes.c_void_p * 4))


if sys.platform == "win32":

    def listed() -> Iterator[Listed]:
        """Every process of the machine."""
        kernel = _kernel()
        snapshot = kernel.CreateToolhelp32Snapshot(_SNAPSHOT_OF_PROCESSES, 0)
        if snapshot in (None, _INVALID_HANDLE):
            return
        try:
            entry = _Entry(size=ctypes.sizeof(_Entry))
            more = kernel.Process32FirstW(snapshot, ctypes.byref(entry))
            while more:
                yield Listed(entry.pid, entry.parent, entry.program)
                more = kernel.Process32NextW(snapshot, ctypes.byref(entry))
        finally:
            kernel.CloseHandle(snapshot)

    def details(pid: int) -> Details | None:
        """What process `pid` was started with; None where it cannot be read."""
        if ctypes.sizeof(ctypes.c_void_p) != _POINTER:
            return None
        kernel = _kernel()
        process = kernel.OpenProcess(_PROCESS_QUERY_INFORMATION | _PROCESS_VM_READ, False, pid)
        if not process:
            return None
        try:
            return _read(_Memory(kernel, process))
        except (OSError, ValueError):
            return None
        finally:
            kernel.CloseHandle(process)

    def _read(memory: _Memory) -> Details | None:
        basic = _Basic()
        status = ctypes.WinDLL("ntdll").NtQueryInformationProcess(
            ctypes.c_void_p(memory.process), 0, ctypes.byref(basic), ctypes.sizeof(basic), None
        )
        if status != 0 or not basic.block:
            return None
        parameters = memory.pointer(basic.block + _PARAMETERS)
        size = memory.pointer(parameters + _ENVIRONMENT_SIZE)
        block = memory.bytes(memory.pointer(parameters + _ENVIRONMENT), size) if 0 < size <= LONGEST else b""
        return Details(
            tuple(_split(memory.text(parameters + _COMMAND_LINE))),
            memory.text(parameters + _FOLDER),
            memory.text(parameters + _IMAGE),
            _variables(block.decode("utf-16-le", "surrogatepass")),
        )

    def _split(line: str) -> list[str]:
        """The words of a command line as its program got them."""
        if not line:
            return []
        split = ctypes.WinDLL("shell32").CommandLineToArgvW
        split.restype = ctypes.POINTER(ctypes.c_wchar_p)
        split.argtypes = (ctypes.c_wchar_p, ctypes.POINTER(ctypes.c_int))
        count = ctypes.c_int()
        words = split(line, ctypes.byref(count))
        if not words:
            return []
        try:
            return [words[number] or "" for number in range(count.value)]
        finally:
            _kernel().LocalFree(words)

    def _kernel() -> ctypes.WinDLL:
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
        kernel.CreateToolhelp32Snapshot.argtypes = (ctypes.c_uint32, ctypes.c_uint32)
        kernel.Process32FirstW.argtypes = kernel.Process32NextW.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Entry))
        kernel.OpenProcess.restype = ctypes.c_void_p
        kernel.OpenProcess.argtypes = (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
        kernel.CloseHandle.argtypes = (ctypes.c_void_p,)
        kernel.LocalFree.argtypes = (ctypes.c_void_p,)
        size = ctypes.c_size_t
        kernel.ReadProcessMemory.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            size,
            ctypes.POINTER(size),
        )
        return kernel

    class _Memory:
        """The memory of an open process. Everything raises OSError where it cannot be read."""

        def __init__(self, kernel: ctypes.WinDLL, process: int) -> None:
            self.kernel = kernel
            self.process = process

        def bytes(self, address: int, size: int) -> bytes:
            if not address or size > LONGEST:
                raise ValueError(f"{size} bytes at {address}")
            buffer = ctypes.create_string_buffer(size)
            done = ctypes.c_size_t()
            if not self.kernel.ReadProcessMemory(self.process, address, buffer, size, ctypes.byref(done)):
                raise ctypes.WinError(ctypes.get_last_error())
            return buffer.raw[: done.value]

        def pointer(self, address: int) -> int:
            return int.from_bytes(self.bytes(address, _POINTER), "little")

        def text(self, address: int) -> str:
            """A counted string: its length in bytes, and 8 bytes further where it lies."""
            size = int.from_bytes(self.bytes(address, 2), "little")
            if not size:
                return ""
            return self.bytes(self.pointer(address + _POINTER), size).decode("utf-16-le", "surrogatepass")

else:

    def listed() -> Iterator[Listed]:
        """Nothing: this is not Windows."""
        return iter(())

    def details(pid: int) -> Details | None:
        """Nothing: this is not Windows."""
        return None


def _variables(block: str) -> dict[str, str]:
    """The variables in an environment block. Names such as `=C:`, with which cmd remembers folders, are skipped."""
    found = {}
    for row in block.split("\0\0", 1)[0].split("\0"):
        name, equals, value = row.partition("=")
        if name and equals:
            found[name] = value
    return found
