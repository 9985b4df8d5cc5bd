"""`driffusion-trt serve --ray`: the service on a cluster of Ray, from its first node to its end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from .._address import listening_at
from .._errors import DriffusionError, InputError
from .ray_app import Facts, Failed, Recipe, tried
from .ray_connection import APP, connected, quiet
from .ray_metrics import Board
from .ray_scale import DEPLOYMENT, DRAIN_S, Scale, deployment_of, target_of

__all__ = ["serve_on_ray"]

_log = logging.getLogger("driffusion_trt.server")
_PROXIES = {"head": "HeadOnly", "every": "EveryNode"}
_WAITED_S = 10.0  # for room on a node, after which it is said
_LOOK_S = 1.0
_MOST_SILENT = 60  # looks
_LAST_WORDS_S = 2.0  # for answers that proxies still send

Say = Callable[[str], None]


def serve_on_ray(recipe: Recipe, scale: Scale, drain_s: float | None, say: Say, verbose: bool) -> None:
    """Serve until a signal comes. say: is told what happens. drain_s: for what was accepted, at the end.

    Raises:
        InputError: the cluster has no room for a replica, or serves something already.
        DriffusionError: there is no such cluster, or the model cannot be served on it.
    """
    with quiet(verbose), connected(scale.address, scale.trusted, verbose) as ended:
        _check_room(scale)
        recipe = replace(recipe, how={**recipe.how, "devices": scale.devices})
        late = f"the model is on no node yet: it waits for {_room(scale)} that nothing else has, or for Ray"
        with _said_late(late, say) as came:
            facts = _tried(recipe, scale, say, came)
        target = scale.target or target_of(facts)
        rate = f"about {facts.per_second:.2f} pictures a second"
        more = (
            f"; more of them above {target:.1f} requests each"
            if scale.replicas[1] > scale.replicas[0]
            else ""
        )
        say(f"a replica has {facts.where}, {rate}{more}")
        board: Any = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        recipe = replace(recipe, board=board, digests=facts.digests)
        begun = _Beginning(recipe, scale, deployment_of(recipe, scale, facts.lanes, target, drain_s), say)
        with contextlib.suppress(KeyboardInterrupt):
            _watch(begun, ended, say)
        say("no more requests are taken; those that were are finished")
        _drain(drain_s or DRAIN_S)


def _check_room(scale: Scale) -> None:
    """Raises InputError where no node could ever hold a replica."""
    known: Any = ray.nodes  # published without types
    nodes = [node["Resources"] for node in known() if node["Alive"]]
    if not any(node.get("GPU", 0) >= scale.gpus and node.get("CPU", 0) >= scale.cpus for node in nodes):
        found = "; ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
        raise InputError(
            f"a replica is to have {_room(scale)} of one node, and the nodes of the "
            f"cluster have: {found}; change --gpus-per-replica or --cpus-per-replica"
        )


def _room(scale: Scale) -> str:
    return f"{scale.gpus} GPUs and {scale.cpus} CPUs"


@contextlib.contextmanager
def _said_late(text: str, say: Say, after_s: float = _WAITED_S) -> Iterator[Callable[[], None]]:
    """Say it after a while, unless what is given back is called before, or the block ends."""
    timer = threading.Timer(after_s, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


def _tried(recipe: Recipe, scale: Scale, say: Say, came: Callable[[], None]) -> Facts:
    """came: is called once the trial has begun."""
    trial: Any = ray.remote(num_cpus=scale.cpus, num_gpus=scale.gpus, max_calls=1, max_retries=0)(tried)
    last = ""
    try:
        for each in trial.remote(recipe):
            found = ray.get(each)
            came()
            if isinstance(found, Facts):
                return found
            if isinstance(found, Failed):
                kind = InputError if found.misuse else DriffusionError
                raise kind(found.message)
            if found != last:
                say(found)
                last = found
    except ray.exceptions.RayError as error:
        raise DriffusionError(
            f"the model could not be tried on a node ({str(error)[:500]}); the same version of "
            "driffusion-trt has to be installed on every node"
        ) from error
    raise DriffusionError("the trial of the model ended without a result; see Ray's logs")


class _Beginning:
    """Has Ray make the replicas; where there is no room yet for some, the others are at work already."""

    def __init__(self, recipe: Recipe, scale: Scale, app: Any, say: Say) -> None:
        from ray.serve.config import HTTPOptions

        least, most = scale.replicas
        say(f"replicas: {least}" if least == most else f"replicas: {least} to {most}, by the load")
        where = HTTPOptions(host=scale.host, port=scale.port)
        serve.start(proxy_location=_PROXIES[scale.proxies], http_options=where)
        self.address = f"{recipe.options.names[0]}: {listening_at(scale.host, scale.port)}"
        self._error: Exception | None = None
        threading.Thread(target=self._run, args=(app,), daemon=True).start()

    def _run(self, app: Any) -> None:
        try:
            serve.run(app, name=APP, route_prefix="/")  # waits for all of them
        except Exception as error:
            self._error = error

    def check(self) -> None:
        """Raises DriffusionError where Ray gave it up."""
        if self._error is not None:
            raise DriffusionError(f"Ray could not start the replicas: {self._error}") from self._error


def _watch(begun: _Beginning, ended: threading.Event, say: Say) -> None:
    """Say how many replicas there are whenever that changes, and the address once there is one.

    Raises DriffusionError where Ray makes none, or does not answer for long.
    """
    last, address, silent = "", begun.address, 0
    while not ended.wait(_LOOK_S):
        if address:  # later on, replicas come and go
            begun.check()
        counts = _counts()
        silent = 0 if counts is not None else silent + 1
        if silent > _MOST_SILENT:
            raise DriffusionError("the cluster of Ray does not answer any more; see `ray status` on its head")
        told = ", ".join(f"{count} {state}" for state, count in sorted((counts or {}).items()))
        if told and told != last:
            say(f"replicas: {told}")
            last = told
        if address and counts and counts.get("running"):
            say(address)
            address = ""


def _counts() -> dict[str, int] | None:
    """How many replicas there are by their state; None where Ray's controller moves, or has not begun."""
    try:
        states = serve.status().applications[APP].deployments[DEPLOYMENT].replica_states
    except KeyError:
        return {}
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, TimeoutError) as error:
        _log.warning("Ray does not say how its replicas are: %s", error)
        return None
    return {str(state).lower(): count for state, count in states.items()}


def _drain(within_s: float) -> None:
    """Take the service down; replicas end once what they accepted is answered."""
    until = time.monotonic() + within_s + 15.0
    serve.delete(APP, _blocking=False)
    while _counts() != {} and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(_LAST_WORDS_S)
