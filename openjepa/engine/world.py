"""The processes that train one run together: what they add up, gather and agree on goes through here.

The loss of a step is the sum of the processes' losses, each times its share of the global batch (Batch.share). Gradients are
added up once a step, in buckets, after the last micro-batch. Where a loss needs something of the whole batch (a mean, the other
images), `add_up` and `gather` give it, and carry gradients back to the process that a number came from: their derivative is the
sum over processes of what each derives. With one process all of this is nothing.

Why not DistributedDataParallel: it averages, wants every weight to get a gradient, wraps the method, and has to be told which
micro-batch is the last. What it has more is that it adds up gradients while the backward pass still runs.

Numbers that no gradient flows through go as JSON: nothing is pickled. CPU tensors go through gloo, those of a GPU through NCCL.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from openjepa.engine.precision import widen
from openjepa.runs.launch import Launch, read_launch
from openjepa.runs.stop import Interrupted

Value = TypeVar("Value")

LIMIT = "OPENJEPA_WAIT_S"  # seconds that processes wait for one another, in the environment
WAIT_S = 1800.0  # in which one process measures health, probes and saves, while the others wait
REPORT_S = 3.0  # for the processes that are left to find one another
BUCKET_NUMBERS = 2**24  # gradients that travel together: 64 MB


class RankLost(ChildProcessError):
    """Another process of the run has died, or does not answer."""


@dataclass(frozen=True)
class World:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and shows."""
        return self.rank == 0

    def all(self, flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the flag is true on every process; it stays on its device."""
        if self.size == 1:
            return flag
        number = flag.to(torch.int32)
        _wait(lambda: dist.all_reduce(number, dist.ReduceOp.MIN))
        return number.bool()

    def most(self, *numbers: int) -> list[int]:
        """The largest of each number over the processes."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        _wait(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
        return [int(number) for number in found.tolist()]

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, which all have one shape; gradients flow back."""
        return tensor if self.size == 1 else _AddUp.apply(tensor)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, as many of each, in the order of the global batch; gradients flow back."""
        return rows if self.size == 1 else _Gather.apply(rows, self)

    def meet(self) -> None:
        """Of the first process: say that it is prepared. Of the others: wait for that, without a limit of time."""
        if self.size == 1 or _peers is None:
            return
        if self.is_first:
            _peers.store.set("ready", "1")
        else:
            _peers.wait_for_first()

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Of something that is the same everywhere and has rows for the global batch: this process's."""
        return rows.chunk(self.size, dim)[self.rank]

    def draw(self, draw: Callable[[], Tensor]) -> Tensor:
        """This process's part of what all draw, in the order of the global batch and leaving equal generators."""
        return [draw() for _ in range(self.size)][self.rank]

    def take(self, rows: Tensor, places: Tensor) -> Tensor:
        """For each own row, the row at its place in the global batch. places: of all rows of it, each once; no gradient."""
        count = len(rows)
        if self.size == 1:
            return rows[places]
        wanted = places.view(self.size, count)  # by process
        holders = wanted // count
        sent = [rows[wanted[other][holders[other] == self.rank] - self.rank * count] for other in range(self.size)]
        received = torch.empty_like(rows)
        sizes = torch.bincount(holders[self.rank], minlength=self.size).tolist()
        _wait(lambda: dist.all_to_all_single(received, torch.cat(sent), sizes, [len(part) for part in sent]))
        taken = torch.empty_like(rows)
        taken[holders[self.rank].argsort(stable=True)] = received
        return taken

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Add up the gradients in place. The weights that have one must be the same on every process."""
        if self.size == 1:
            return
        works = []
        for bucket in _fill_buckets([weight.grad for weight in weights if weight.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            works.append((bucket, flat, _wait(lambda flat=flat: dist.all_reduce(flat, async_op=True))))  # type: ignore[misc]
        for bucket, flat, work in works:
            _wait(work.wait)
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])

    def add_metrics(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each number over the processes; all must have the same names."""
        if self.size == 1 or not metrics:
            return metrics
        return dict(zip(metrics, self.add_up(torch.stack([widen(value) for value in metrics.values()])), strict=True))

    def share(self, value: Any) -> Any:
        """The first process's value, plain values alone, on every process."""
        if self.size == 1:
            return value
        words = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(words))
        self._broadcast(length)
        words = words if self.is_first else torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(words)
        return json.loads(words.numpy().tobytes())

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, plain values alone, on every process."""
        if self.size == 1:
            return [value]
        words = json.dumps(value).encode()
        (length,) = self.most(len(words))
        row = torch.frombuffer(bytearray(words.ljust(length)), dtype=torch.uint8)
        return [json.loads(part.numpy().tobytes()) for part in self.gather(row[None])]

    def share_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The first process's tensors, on every process; elsewhere, what is given does not matter."""
        if self.size == 1:
            return dict(tensors)
        shapes = self.share({name: (list(value.shape), str(value.dtype)) for name, value in tensors.items()})
        shared = {}
        for name, (shape, dtype) in shapes.items():
            place = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
            shared[name] = tensors[name].detach().to(device).contiguous() if self.is_first else place
            whole = shared[name].view(torch.uint8) if shared[name].dtype == torch.bool else shared[name]
            self._broadcast(whole)
        return shared

    def _broadcast(self, tensor: Tensor) -> None:
        _wait(lambda: dist.broadcast(tensor, 0))


class _AddUp(torch.autograd.Function):
    """Sum over processes. Each process's loss depends on every process's tensor, and all losses count: gradients add up too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        _wait(lambda: dist.all_reduce(total))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        _wait(lambda: dist.all_reduce(total))
        return total


class _Gather(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of what all processes derive for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        _wait(lambda: dist.all_gather(parts, rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        _wait(lambda: dist.all_reduce(total))
        return ctx.world.own(total), None


def _fill_buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, BUCKET_NUMBERS numbers or one tensor at a time."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(part.numel() for part in bucket) + gradient.numel() > BUCKET_NUMBERS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


_current = World()
_peers: _Peers | None = None


def current() -> World:
    """The processes that work together at the moment."""
    return _current


@contextmanager
def alone() -> Iterator[None]:
    """What is computed meanwhile is this process's alone, as when it times a step or saves after the others are gone."""
    global _current
    before, _current = _current, World()
    try:
        yield
    finally:
        _current = before


@contextmanager
def join() -> Iterator[World]:
    """Meet the other processes that torchrun has started, and work with them meanwhile; one process meets nobody.

    However it ends, one process says so: the one whose own error it is, else the first that is left. The others leave with
    SystemExit. ValueError if the environment contradicts itself, or the others do not come.
    """
    global _current, _peers
    launch = read_launch()
    if launch.size == 1 or _current.size > 1:
        yield _current
        return
    limit_s = float(os.environ.get(LIMIT) or WAIT_S)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=limit_s)))
        # torchrun keeps its store over restarts, and with it the addresses of processes that are gone.
        store = PrefixStore(f"attempt {launch.restarts}", store)
        store.set_timeout(timedelta(seconds=limit_s))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if launch.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(launch.local_rank)
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.size, timeout=timedelta(seconds=limit_s)
        )
    except RuntimeError as error:  # torch.distributed's are
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise OSError(f"the {launch.size} processes of this run did not meet at {where}: {_first_line(error)}") from None
    _current = World(launch.rank, launch.size)
    try:
        _peers = _Peers(launch, store, limit_s)
        yield _current
        dist.destroy_process_group()
    except RankLost:
        if not _peers or not _peers.should_speak():
            raise SystemExit(2) from None
        raise
    except (Interrupted, ArithmeticError) as error:  # which are all processes'
        if launch.rank == 0:
            raise
        raise SystemExit(128 + error.signal_number if isinstance(error, Interrupted) else 2) from None
    except (ValueError, OSError) as error:
        if _peers is not None:
            _peers.say_why()
        if launch.rank == 0:
            raise
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"rank {launch.rank} of {launch.size}: {error}") from None
    finally:
        _current, _peers = World(), None


class _Peers:
    """The other processes as this one knows them, for the moment in which one is gone: through the store, which outlives it."""

    def __init__(self, launch: Launch, store: Store, limit_s: float) -> None:
        self.launch, self.store, self.limit_s = launch, store, limit_s
        self.known = World(launch.rank, launch.size).collect([socket.gethostname(), os.getpid()])
        self.left: list[int] = []
        self.have_said = False

    def name_lost(self, error: RuntimeError) -> str:
        """Who is gone, in words. Waits REPORT_S at most for the others that are left."""
        timed_out = "timed out" in str(error).lower()
        try:
            self.store.set(f"left/{self.launch.rank}", "1")
            deadline = time.monotonic() + REPORT_S
            while len(self._find("left")) < self.launch.size and time.monotonic() < deadline:
                time.sleep(0.05)
            self.left, self.have_said = self._find("left"), bool(self._find("said"))
            if self.should_speak():
                self.say_why()
        except RuntimeError:
            self.left = [self.launch.rank]
        missing = [rank for rank in range(self.launch.size) if rank not in self.left and (timed_out or not self._lives(rank))]
        if not missing:
            return f"the processes of this run lost their connection ({_first_line(error)})"
        names = ", ".join(f"{rank} (process {self.known[rank][1]} on {self.known[rank][0]})" for rank in missing)
        words = f"rank {names} of {self.launch.size}"
        return f"{words} has not answered for {self.limit_s:g} s" if timed_out else f"{words} is gone"

    def wait_for_first(self) -> None:
        """Until the first process is ready, however long that takes. SystemExit if it says why it will not be."""
        try:
            while not self.store.check(["ready"]):
                if self.store.check(["said/0"]):
                    self.store.set(f"left/{self.launch.rank}", "1")
                    raise SystemExit(2)
                time.sleep(0.05)
        except RuntimeError as error:
            raise RankLost(f"rank 0 is gone ({_first_line(error)})") from None

    def should_speak(self) -> bool:
        """Whether it is this process that tells the user."""
        return not self.have_said and self.launch.rank == min(self.left, default=self.launch.rank)

    def say_why(self) -> None:
        """Let the others know that this process says why it ends."""
        try:
            self.store.set(f"said/{self.launch.rank}", "1")
            if self.launch.rank == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:  # this process holds the store
                deadline = time.monotonic() + REPORT_S
                while len(self._find("left")) < self.launch.size - 1 and time.monotonic() < deadline:
                    time.sleep(0.05)
        except RuntimeError:
            return

    def _find(self, key: str) -> list[int]:
        return [rank for rank in range(self.launch.size) if self.store.check([f"{key}/{rank}"])]

    def _lives(self, rank: int) -> bool:
        """Whether a process of this machine runs; of another machine nothing is known."""
        host, process = self.known[rank]
        status = Path(f"/proc/{process}/stat")
        try:
            return host == socket.gethostname() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False


def _wait(ask: Callable[[], Value]) -> Value:
    """What is asked of all processes. RankLost, with who it is, if one of them is gone."""
    try:
        return ask()
    except RuntimeError as error:
        raise RankLost(_first_line(error) if _peers is None else _peers.name_lost(error)) from None


def _first_line(error: BaseException) -> str:
    return re.sub(r"^\[[^\]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0].rstrip(". ")
