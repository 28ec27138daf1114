"""Owns the loop. It reads top to bottom; everything a paper does happens in the method's own functions."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from calseg_cli.data.loader import Batch
from calseg_cli.data.ordered import closing_reader
from calseg_cli.engine.batch_statistics import too_small_for_batch_norm
from calseg_cli.engine.checkpoint import random_state, restore_random_state
from calseg_cli.engine.device import autocast
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Progress
from calseg_cli.engine.recompute import recomputing
from calseg_cli.engine.schedule import Schedule, lr_factor
from calseg_cli.errors import StoppedError

State = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train; the paper does not see it."""

    steps: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: Schedule = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False
    grad_checkpoint: bool = False
    log_every: int = 20
    validate_every: int = 0
    checkpoint_every: int = 0


class Stream(Protocol):
    """Where batches come from; the same steps give the same batches, wherever one starts."""

    def batches(self, start_step: int, stop_step: int) -> Iterable[Batch]:
        """The batches of those steps."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls and does not look into: a record to log, a step to validate, a state to save."""

    log: Callable[[dict[str, Any]], None]
    validate: Callable[[int], None]
    save: Callable[[int, State], None]


def train(
    method: Method,
    stream: Stream,
    plan: Plan,
    *,
    device: torch.device,
    hooks: Hooks,
    progress: Progress,
    stop: StopRequest,
    state: State | None = None,
    ranks: Ranks = ALONE,
    seed: int = 0,
) -> int:
    """Train `method` in place and return the number of steps done: fewer than planned when `stop` asks.

    `state` is what `hooks.save` got earlier; from it the run continues as if nothing had happened. Raises
    StoppedError when the loss is no longer finite; the last saved state is then untouched.

    Of several `ranks` each trains on its share of every batch: gradients and terms are summed, so a method's terms must
    be its share's part of the whole batch's. All begin with the main one's weights and take the same steps; what is
    drawn inside the network follows from `seed`. One that is asked to stop stops all. Hooks are called in all of them.
    """
    method.to(device)
    if plan.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(method, plan)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.amp == "fp16")
    start = _restore(state, method, optimizer, scaler) if state is not None else 0
    ranks.equalise([*method.parameters(), *method.buffers()])
    batches = iter(stream.batches(start * plan.accumulate, plan.steps * plan.accumulate))
    progress.start("training", plan.steps, done=start)
    clock, done = time.perf_counter(), start
    with closing_reader(batches), recomputing(method.network, wanted=plan.grad_checkpoint):
        for step in range(start, plan.steps):
            method.train()
            set_learning_rates(optimizer, plan, step)
            ranks.seed_step(seed, step)
            terms = _accumulate(method, batches, step, plan, device, scaler)
            norm = _update(method, optimizer, scaler, plan, ranks)
            method.after_step(step)
            done = step + 1
            asked = asked_to_stop(stop, ranks)
            last = done == plan.steps
            saves, logs = asked or last or _is_due(done, plan.checkpoint_every), last or _is_due(done, plan.log_every)
            validates = _is_due(done, plan.validate_every) and not last
            if saves or logs or validates:
                terms = {name: ranks.total(term) for name, term in terms.items()}
            if saves or validates:
                ranks.equalise(method.buffers())  # batch norm that is not shared counts apart
                _check_finite(done, terms)  # before a broken state takes a good one's place; a stop may come any time
            if logs:
                record = _record(done, terms, norm, optimizer, (time.perf_counter() - clock), method.report())
                hooks.log(record)
                progress.advance(0, **{name: value for name, value in record.items() if name in ("loss", "lr")})
            progress.advance()
            if validates:
                hooks.validate(done)
                asked = asked_to_stop(stop, ranks)
            if saves or asked:
                hooks.save(done, _state(done, method, optimizer, scaler))
            if asked:
                ranks.barrier()  # nobody ends before the state is written: torchrun would end the one that writes it
                break
    progress.finish()
    return done


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def asked_to_stop(stop: StopRequest, ranks: Ranks) -> bool:
    """Whether any process was asked to stop; then all know it, the signal too."""
    (signum,) = ranks.largest([stop.signum or 0])
    if signum:
        stop.signum = signum
    return bool(stop)


def build_optimizer(method: Method, plan: Plan) -> torch.optim.Optimizer:
    """AdamW or SGD over the method's groups; the head has its own learning rate, norms and biases no decay."""
    groups = [
        {
            "params": group.parameters,
            "lr": plan.head_lr if group.role == "head" else plan.lr,
            "base_lr": plan.head_lr if group.role == "head" else plan.lr,
            "weight_decay": plan.weight_decay if group.decay else 0.0,
        }
        for group in method.parameter_groups()
    ]
    if not groups:
        raise ValueError(f"{method.name} has nothing to train")
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0)
    return torch.optim.AdamW(groups, lr=plan.lr)


def set_learning_rates(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> None:
    """Give every group its learning rate of this step."""
    factor = lr_factor(
        step, plan.steps, schedule=plan.schedule, power=plan.power, warmup_steps=min(plan.warmup_steps, plan.steps)
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _accumulate(
    method: Method,
    batches: Iterator[Batch],
    step: int,
    plan: Plan,
    device: torch.device,
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """Forward and backward over the step's micro-batches; the terms' means over them, detached."""
    sums: dict[str, Tensor] = {}
    for _ in range(plan.accumulate):
        batch = next(batches).to(device)
        method.before_step(batch, step)
        with autocast(device, plan.amp), too_small_for_batch_norm():
            terms = method(batch)
        loss = torch.stack([term.float() for term in terms.values()]).sum() / plan.accumulate
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for name, term in terms.items():
            sums[name] = sums.get(name, term.new_zeros(())) + term.detach() / plan.accumulate
    return sums


def _update(
    method: Method, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, plan: Plan, ranks: Ranks
) -> Tensor | None:
    ranks.reduce_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
    norm = None
    if plan.clip_norm is not None:
        scaler.unscale_(optimizer)
        members = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(members, plan.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _record(
    step: int,
    terms: dict[str, Tensor],
    norm: Tensor | None,
    optimizer: torch.optim.Optimizer,
    seconds: float,
    watch: dict[str, float],
) -> dict[str, Any]:
    """One line of the log."""
    values = _check_finite(step, terms)
    return {
        "event": "step",
        "step": step,
        "loss": sum(values.values()),
        "terms": values,
        "lr": optimizer.param_groups[-1]["lr"],
        "grad_norm": float(norm) if norm is not None else None,
        "seconds": round(seconds, 3),
        **({"watch": watch} if watch else {}),
    }


def _check_finite(step: int, terms: dict[str, Tensor]) -> dict[str, float]:
    """The terms as numbers. Looked at when logged, saved or validated, not every step: reading one makes a GPU wait."""
    values = {name: float(term) for name, term in terms.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise StoppedError(
            f"the loss is no longer finite at step {step} (term {', '.join(broken)})",
            "lower the learning rate or set clip_norm; with amp fp16 try bf16. The last saved state is from before",
        )
    return values


def _state(step: int, method: Method, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> State:
    """Everything needed to go on: the stream's place follows from the step alone."""
    return {
        "step": step,
        "method": dict(method.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": random_state(),
    }


def _restore(state: State, method: Method, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"])
    return int(state["step"])


def sweep(
    method: Method, batches: Iterable[Batch], *, device: torch.device, progress: Progress, stop: StopRequest
) -> int:
    """Show a method every batch once, without gradients; the number of batches seen."""
    seen = 0
    method.to(device)
    with closing_reader(batches), torch.no_grad():
        for batch in batches:
            method(batch.to(device))
            method.after_step(seen)
            seen += 1
            progress.advance(len(batch.target_ids))
            if stop:
                break
    return seen
