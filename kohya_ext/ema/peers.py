"""The ranks of a run give each other elements of their tensors, at any time and without taking part in a step.

A file is saved by one rank alone while the others have gone on to the next step, where they wait for it. So no
collective operation can bring together what they keep. Each rank has a thread instead that answers requests: by plain
sockets, which outlast the trainer's process groups (a run ends those before it saves its last file), and which tell at
once that a rank has died.

Nothing changes while it is read: no rank completes a step without all others, so as long as one of them reads, the
others stay at the step they have made. Each rank counts what it has done (steps, loaded states); a request names the
count, and the answer waits until the other rank is there too.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kohya_ext.ema.fragments import Place, Whole
from kohya_ext.tensors.elements import DEVICE_SLICE, slices

TOKEN_BYTES = 32
_LENGTH = struct.Struct("!Q")
_LONGEST_MESSAGE = 1 << 26  # bytes of JSON
_CONNECT_SECONDS = 60.0
_WAIT_SECONDS = 1800.0  # for a rank to come as far as the one that asks

# What a rank gives: kind -> the flat elements of the fragment with this index
Source = Callable[[str, int], Tensor]
Gauge = Callable[[str], Sequence[float]]


@dataclass(frozen=True)
class Card:
    """How others reach a rank, and what it keeps."""

    address: tuple[str, int]
    places: list[Place]


class PeerError(RuntimeError):
    """Another rank cannot give what is asked for: it has died, or it is at another step."""


class Peers:
    """One rank's side of it: answers the others, and asks them.

    Args:
        rank: of this process, from 0.
        host: the address to listen at, and by which the others reach it.
        token: a secret that all ranks know, of `TOKEN_BYTES` bytes; whoever does not send it gets nothing.
        source: gives the elements of this rank's fragments, for any kind that may be asked for.
        gauge: gives some numbers about what this rank keeps of a kind.
    """

    def __init__(self, rank: int, host: str, token: bytes, source: Source, gauge: Gauge) -> None:
        self.rank, self._token, self._source, self._gauge = rank, token, source, gauge
        self._listener = socket.create_server((host, 0), family=_family(host))
        self.address: tuple[str, int] = (host, self._listener.getsockname()[1])
        self._cards: list[Card] = []
        self._count = 0
        self._arrived = threading.Condition()
        self._read_on = _OwnStream()
        self._kept_alive: list[socket.socket] = []
        self._told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._released = threading.Event()
        self._released.set()
        threading.Thread(target=self._accept, name="kohya_ext peers", daemon=True).start()

    # ------------------------------------------------------------------ the others

    def meet(self, cards: Sequence[Card]) -> None:
        """Learn of all ranks, this one included. Rank 0 stays connected to the others until its process ends."""
        self._cards = list(cards)
        if self.rank == 0:
            for rank in range(1, len(cards)):
                self._kept_alive.append(self._ask(rank, {"stay": True}))

    @property
    def tables(self) -> list[list[Place]]:
        """What each rank keeps."""
        return [card.places for card in self._cards]

    def tell(self, message: dict[str, Any]) -> None:
        """On rank 0: say something to all others. One that has died is not told."""
        for connection in self._kept_alive:
            with contextlib.suppress(OSError):
                _send(connection, message)

    def told(self) -> dict[str, Any] | None:
        """On the others: what rank 0 has said next, which is waited for; None once it has ended."""
        message = self._told.get()
        if message is None:
            self._told.put(None)
        return message

    def wait_for_first(self, seconds: float | None = None) -> bool:
        """Wait until rank 0 has ended, which may need this rank for its last files. False where it has not by then."""
        return self._released.wait(seconds)

    def advance(self) -> None:
        """This rank has done what all ranks do: its tensors are ready to be read as they are now."""
        self._read_on.note()
        with self._arrived:
            self._count += 1
            self._arrived.notify_all()

    # ------------------------------------------------------------------ asking

    def fetch(self, kind: str, wholes: Sequence[Whole]) -> Iterator[Tensor]:
        """Whole parameters one after the other, on the CPU, as all ranks have them at this rank's count.

        Raises:
            PeerError: another rank has died, or its elements are at another step.
        """
        with contextlib.ExitStack() as stack:
            streams = {
                rank: stack.enter_context(self._stream(rank, kind, wholes))
                for rank in sorted({part.rank for whole in wholes for part in whole.parts} - {self.rank})
            }
            for whole in wholes:
                parts = [
                    self._own(kind, part.index, part.start, part.end)
                    if part.rank == self.rank
                    else streams[part.rank].next(part.end - part.start)
                    for part in whole.parts
                ]
                joined = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)
                yield joined.view(whole.shape)

    def _own(self, kind: str, index: int, start: int, end: int) -> Tensor:
        first = self._cards[self.rank].places[index].start
        return self._source(kind, index)[start - first : end - first].detach().to("cpu", copy=True)

    @contextlib.contextmanager
    def _stream(self, rank: int, kind: str, wholes: Sequence[Whole]) -> Iterator[_Answer]:
        wanted = [
            (part.index, part.start - self._cards[rank].places[part.index].start, part.end - part.start)
            for whole in wholes
            for part in whole.parts
            if part.rank == rank
        ]
        with contextlib.closing(self._ask(rank, {"kind": kind, "count": self._count, "parts": wanted})) as connection:
            yield _Answer(rank, connection)

    def _ask(self, rank: int, request: dict[str, Any]) -> socket.socket:
        try:
            connection = socket.create_connection(self._cards[rank].address, timeout=_CONNECT_SECONDS)
            connection.settimeout(None)
            connection.sendall(self._token)
            _send(connection, request)
        except OSError as error:
            raise PeerError(f"rank {rank} cannot be reached: {error}") from error
        return connection

    def measure(self, kind: str) -> list[Sequence[float]]:
        """What the gauge of each rank says of this kind.

        Raises:
            PeerError: as `fetch` does.
        """
        found: list[Sequence[float]] = []
        for rank in range(len(self._cards)):
            if rank == self.rank:
                found.append(self._gauge(kind))
                continue
            with contextlib.closing(self._ask(rank, {"measure": kind, "count": self._count})) as connection:
                found.append(_Answer(rank, connection).numbers())
        return found

    # ------------------------------------------------------------------ answering

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError), connection:
            if not hmac.compare_digest(_receive(connection, TOKEN_BYTES), self._token):
                return
            request = _message(connection)
            if "stay" in request:
                self._listen_to_first(connection)
                return
            self._give(connection, request)

    def _listen_to_first(self, connection: socket.socket) -> None:
        self._released.clear()
        try:
            while True:
                self._told.put(_message(connection))
        finally:  # it has ended
            self._told.put(None)
            self._released.set()

    def _give(self, connection: socket.socket, request: dict[str, Any]) -> None:
        count = int(request["count"])
        with self._arrived:
            self._arrived.wait_for(lambda: self._count >= count, _WAIT_SECONDS)
            if self._count != count:
                _send(connection, {"error": f"it is at {self._count}, not at {count}"})
                return
        if "measure" in request:
            with self._read_on.used():
                _send(connection, {"numbers": list(self._gauge(request["measure"]))})
            return
        for index, start, length in request["parts"]:
            try:
                elements = self._source(request["kind"], index)[start : start + length].detach()
            except (RuntimeError, LookupError) as error:
                _send(connection, {"error": f"{type(error).__name__}: {error}"})
                return
            _send(connection, {"dtype": str(elements.dtype).removeprefix("torch.")})
            for begin, size in slices(length, DEVICE_SLICE):
                part = self._read_on.host(elements[begin : begin + size])
                connection.sendall(memoryview(part.contiguous().view(torch.uint8).numpy()))

    def close(self) -> None:
        """Answer no more."""
        # an accept() under way in the thread ends with a shutdown only, not with a close
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._kept_alive:
            connection.close()


class _Answer:
    """What one rank sends, part after part."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self._rank, self._connection = rank, connection

    def numbers(self) -> Sequence[float]:
        """What it has measured."""
        try:
            return [float(number) for number in self._head()["numbers"]]
        except (OSError, EOFError) as error:
            raise PeerError(f"rank {self._rank} has died while it was asked ({error})") from error

    def _head(self) -> dict[str, Any]:
        head = _message(self._connection)
        if "error" in head:
            raise PeerError(f"rank {self._rank}: {head['error']}")
        return head

    def next(self, length: int) -> Tensor:
        """The next part, of `length` elements."""
        try:
            head = self._head()
            made = torch.empty(length, dtype=getattr(torch, head["dtype"]))
            _receive_into(self._connection, memoryview(made.view(torch.uint8).numpy()))
        except (OSError, EOFError) as error:
            raise PeerError(f"rank {self._rank} has died while it was read ({error})") from error
        return made


class _OwnStream:
    """Copies tensors of a GPU to the host next to whatever the trainer has queued there.

    The trainer's own queue may be waiting for the very rank that asks: a copy in it would wait forever.
    """

    def __init__(self) -> None:
        self._ready: Any = None
        self._stream: Any = None
        self._device = 0
        self._one_at_a_time = threading.Lock()

    def note(self) -> None:
        """What the trainer has queued so far has to be done before anything is read."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            event = torch.cuda.Event()
            event.record()
            self._ready, self._device = event, torch.cuda.current_device()

    def host(self, part: Tensor) -> Tensor:
        """The same on the CPU."""
        with self.used():
            return part.cpu()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """What is computed on the GPU of this process meanwhile is queued in this stream."""
        if self._ready is None:
            yield
            return
        with self._one_at_a_time:
            self._stream = self._stream or torch.cuda.Stream(self._device)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._ready)
                yield


def card_to_json(card: Card) -> dict[str, Any]:
    """A card as it is sent to the others."""
    return {"address": list(card.address), "places": [asdict(place) for place in card.places]}


def card_from_json(data: dict[str, Any]) -> Card:
    """What `card_to_json` made of it."""
    host, port = data["address"]
    places = [Place(**{**place, "shape": tuple(place["shape"])}) for place in data["places"]]
    return Card((host, port), places)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _message(connection: socket.socket) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if length > _LONGEST_MESSAGE:
        raise ValueError(f"a message of {length} bytes")
    message = json.loads(_receive(connection, length))
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    _receive_into(connection, memoryview(data))
    return bytes(data)


def _receive_into(connection: socket.socket, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = connection.recv_into(buffer[done:])
        if not count:
            raise EOFError("the connection has ended")
        done += count
