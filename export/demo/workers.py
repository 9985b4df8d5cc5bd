"""Training loop of the demo's networks: resumable, over one-thread processes.

Each process takes its own steps and the weights are averaged every `AVERAGE_EVERY`
steps (local SGD, 1805.09767): on two cores this is faster than two threads in one
process, since small layers do not split well.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

AVERAGE_EVERY = 8
SAVE_EVERY_S = 120.0
Loss = Callable[[torch.nn.Module, torch.Generator, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One network's training: `samples` in all, counted over the processes."""

    name: str
    samples: int
    batch: int
    learning_rate: float
    ema: float
    make: Callable[[], torch.nn.Module]
    loss: Callable[[Path], Loss]
    decay_share: float = 0.4
    weight_decay: float = 1e-2
    seed: int = 0
    bf16: bool = False  # autocast: twice as fast where the processor has real bf16 units, slower elsewhere


def train(recipe: Recipe, folder: Path, processes: int = 2) -> None:
    """Train to the end, from the last save if there is one; writes `<name>.pt` with the EMA weights."""
    done = folder / f"{recipe.name}.pt"
    if done.exists():
        print(f"{recipe.name}: done already ({done})", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"{recipe.name}.rendezvous"
    rendezvous.unlink(missing_ok=True)
    spawn(_worker, (processes, recipe, folder, rendezvous), nprocs=processes)  # type: ignore[no-untyped-call]
    rendezvous.unlink(missing_ok=True)


def _average(parameters: list[torch.nn.Parameter], processes: int) -> None:
    flat = torch.nn.utils.parameters_to_vector(parameters)
    dist.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat / processes, parameters)


def _rate(done: float, recipe: Recipe) -> float:
    """Linear warm-up over 1 %, flat, then a cosine to 1 % over the last `decay_share`."""
    if done < 0.01:
        return recipe.learning_rate * max(done, 1e-4) / 0.01
    tail = (done - (1 - recipe.decay_share)) / recipe.decay_share
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(tail, 0.0))))


@torch.no_grad()
def _follow(ema: dict[str, torch.Tensor], model: torch.nn.Module, keep: float) -> None:
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            ema[name].lerp_(value, 1 - keep)


def _worker(rank: int, processes: int, recipe: Recipe, folder: Path, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=processes)
    torch.manual_seed(recipe.seed)
    model = recipe.make()
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    save = folder / f"{recipe.name}.resume.pt"
    step = 0
    if save.exists():
        state = torch.load(save, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], int(state["step"])
    _steps(rank, processes, recipe, folder, model, optimizer, ema, step)
    if rank == 0:
        torch.save(ema, folder / f"{recipe.name}.pt.tmp")
        os.replace(folder / f"{recipe.name}.pt.tmp", folder / f"{recipe.name}.pt")
        save.unlink(missing_ok=True)
    dist.barrier()
    dist.destroy_process_group()


def _steps(
    rank: int,
    processes: int,
    recipe: Recipe,
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
    step: int,
) -> None:
    loss_of = recipe.loss(folder)
    parameters = list(model.parameters())
    per_step = recipe.batch * processes
    total = math.ceil(recipe.samples / per_step / AVERAGE_EVERY) * AVERAGE_EVERY
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step * processes + rank + 1)
    losses: list[float] = []
    saved = logged = time.monotonic()
    while step < total:
        for group in optimizer.param_groups:
            group["lr"] = _rate(step / total, recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(model, generator, step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % AVERAGE_EVERY:
            continue
        _average(parameters, processes)
        if rank:
            continue
        _follow(ema, model, min(recipe.ema, 1 - 8 / (step + 8)))
        now = time.monotonic()
        if now - logged > 20 or step == total:
            _log(folder, recipe.name, step * per_step, total * per_step, losses, now - logged)
            losses.clear()
            logged = now
        if now - saved > SAVE_EVERY_S:
            saved = now
            temporary = folder / f"{recipe.name}.resume.tmp"
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema,
                "step": step,
            }
            torch.save(state, temporary)
            os.replace(temporary, folder / f"{recipe.name}.resume.pt")


def _log(folder: Path, name: str, seen: int, total: int, losses: list[float], seconds: float) -> None:
    row = {"network": name, "samples": seen, "loss": round(sum(losses) / len(losses), 6)}
    with (folder / "losses.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{name}: {seen:,} of {total:,} samples, loss {row['loss']:.5f}, {seconds:.0f} s", flush=True)


def batches(size: int, count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless random index batches of a data set of `count`."""
    while True:
        yield torch.randint(count, (size,), generator=generator)
