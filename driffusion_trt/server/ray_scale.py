"""How many replicas, of what, and when there are more: the deployment that Ray Serve keeps up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray import serve

from .ray_app import Facts, Pictures, Recipe, ReplicaApp

__all__ = ["DEPLOYMENT", "DRAIN_S", "Scale", "deployment_of", "target_of"]

DEPLOYMENT = "pictures"
DRAIN_S = 120.0  # for what a replica accepted, where nothing was said
_SPARE = 32  # requests beyond those of the queue: of health, metrics, the page


@dataclass(frozen=True)
class Scale:
    """How many replicas, of what.

    address: of a cluster, `auto` for the one that this machine is part of, `local` for one of its own; None
    for the former where there is one. replicas: least and most. gpus, cpus: of a replica; gpus of 0 makes
    CPU lanes, as many as cpus. target: requests that a replica is to have, waiting ones included, before
    there are more of them; None for what was measured. up_s, down_s: for which the load has to be so.
    proxies: where HTTP is spoken, "head" or "every" for all nodes that have replicas. trusted: addresses and
    networks whose X-Forwarded-For and -Proto are believed there.
    """

    address: str | None
    host: str
    port: int
    replicas: tuple[int, int] = (1, 1)
    gpus: int = 0
    cpus: int = 1
    target: float | None = None
    up_s: float = 30.0
    down_s: float = 600.0
    proxies: str = "head"
    trusted: tuple[str, ...] = ()

    @property
    def devices(self) -> str | int:
        """Of one replica, which sees only its own GPUs."""
        return "cuda" if self.gpus else self.cpus


def target_of(facts: Facts) -> float:
    """Requests at a replica, by Little's law, at which a picture takes twice as long as on an idle one."""
    return max(1.0, facts.per_second * 2e-3 * facts.expected_ms)


def deployment_of(recipe: Recipe, scale: Scale, lanes: int, target: float, drain_s: float | None) -> Any:
    """The application that `ray.serve.run` takes."""
    least, most = scale.replicas
    many: dict[str, Any] = {"num_replicas": least}
    if most > least:
        many = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": target,
                "upscale_delay_s": scale.up_s,
                "downscale_delay_s": scale.down_s,
            }
        }
    made = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The engine has the queue, since it knows deadlines and clients: Ray passes on what it may hold.
        max_ongoing_requests=recipe.how.get("queue", 64) + lanes + _SPARE,
        max_queued_requests=recipe.how.get("queue", 64),
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=(drain_s or DRAIN_S) + 10.0,
        logging_config={"enable_access_log": False},  # the replica has its own
        **many,
    )(serve.ingress(ReplicaApp(recipe))(Pictures))
    return made.bind()
