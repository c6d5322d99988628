"""Arrays in memory of their own: whoever reads or writes outside is stopped, or leaves a trace."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

PAGE, LINE, PATTERN = mmap.PAGESIZE, 16, 0xA5
NOTHING, BOTH = 0, mmap.PROT_READ | mmap.PROT_WRITE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Guarded:
    """A copy of an array between two pages that nobody may touch, beside one of them.

    at_end: its last 16 bytes end where the page behind begins; else it begins where the page before ends.
    """

    def __init__(self, array: npt.NDArray[np.generic], *, at_end: bool) -> None:
        self._like = array
        kept = -(-max(array.nbytes, 1) // LINE) * LINE
        room = -(-kept // PAGE) * PAGE
        self._size = room + 2 * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._start = LIBC.mmap(None, self._size, NOTHING, flags, -1, 0)
        inside = self._start + PAGE
        assert LIBC.mprotect(inside, room, BOTH) == 0
        self.address = inside + (room - kept if at_end else 0)
        self._offset = self.address - inside
        self._room = np.frombuffer((ctypes.c_ubyte * room).from_address(inside), np.uint8)
        self._room[:] = PATTERN
        self._room[self._offset : self._offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def taken(self) -> npt.NDArray[np.generic]:
        """Return what the array has become, and give its memory back.

        Raises AssertionError where something outside of it was written.
        """
        end = self._offset + self._like.nbytes
        values = self._room[self._offset : end].copy().view(self._like.dtype).reshape(self._like.shape)
        beside = (self._room[: self._offset] == PATTERN).all(), (self._room[end:] == PATTERN).all()
        del self._room
        LIBC.munmap(self._start, self._size)
        assert beside[0], "something before the array was written"
        assert beside[1], "something behind the array was written"
        return values
