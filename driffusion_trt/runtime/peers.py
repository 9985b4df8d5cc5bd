"""Copies between GPUs, tried out before they are trusted: some systems corrupt them and say nothing.

An IOMMU, or PCIe's access control services (ACS), can send what one GPU writes to another somewhere
else, or garble it, while every call of the driver succeeds. So each pair copies patterns, which are
read back through the host and compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

from .._errors import DeviceError
from ._driver import Device
from ._peer_trial import PeerTrial, SilentError

__all__ = ["PeerLink", "can_use", "check_peers", "direct_pairs"]


@dataclass(frozen=True, slots=True)
class PeerLink:
    """What is known of copies from one GPU to another, by their ordinals.

    access: each of the two can use the other's memory directly, and may now.
    verified: what was copied is what arrived, byte by byte.
    problem: why copies cannot be direct, and what to do; empty where they can.
    bandwidth_gb_s, latency_us: of large copies, and of one small copy among many in a row, the cost
        of its call included; None where they were not measured.
    """

    source: int
    target: int
    access: bool
    verified: bool
    problem: str = ""
    bandwidth_gb_s: float | None = None
    latency_us: float | None = None


def can_use(link: PeerLink) -> bool:
    """Whether messages may be copied directly; else they are staged in pinned memory of the host."""
    return link.access and link.verified


def direct_pairs(devices: Sequence[Device]) -> set[tuple[int, int]]:
    """Pairs of ordinals whose copies brought every byte, in both directions.

    Raises DeviceError where a device does not answer.
    """
    links = check_peers(devices) if len(devices) > 1 else {}
    if any(device.lost for device in devices):
        raise DeviceError(next(link.problem for link in links.values() if link.problem))
    good = {pair for pair, link in links.items() if can_use(link)}
    return {(one, other) for one, other in good if (other, one) in good}


def check_peers(
    devices: Sequence[Device], *, measure: bool = False, timeout_s: float = 10.0
) -> dict[tuple[int, int], PeerLink]:
    """Try the copies from each device to each other one, after direct access was enabled where it can be.

    Access stays enabled; all else is given back. About 20 ms for a pair, and some more to measure.
    A device that does not answer in time is marked as `lost`, and both are where a copy between
    them does not end: nothing of this process could be freed there without waiting for ever.

    Args:
        measure: also bandwidth and latency, medians of several.
        timeout_s: how long one copy may take.

    Returns:
        A link for every ordered pair of ordinals; what fails for a pair is in its `problem`.
    """
    given = {device.ordinal: device for device in devices}
    refusals: dict[tuple[int, int], str] = {}
    for one, other in combinations(given, 2):
        refusals[one, other] = refusals[other, one] = _open(given[one], given[other])
    return {
        (source, target): _check(given[source], given[target], refusals[source, target], measure, timeout_s)
        for source, target in permutations(given, 2)
    }


def _open(one: Device, other: Device) -> str:
    """Enable access both ways; why that cannot be, or nothing."""
    try:
        for device, peer in ((one, other), (other, one)):
            if not device.can_access(peer):
                return (
                    f"{device.title} has no direct access to the memory of {peer.title}; copies go "
                    "through the host's memory, which is slower"
                )
        for device, peer in ((one, other), (other, one)):
            device.enable_peer(peer)
    except DeviceError as error:
        return str(error)
    return ""


def _check(source: Device, target: Device, refusal: str, measure: bool, timeout_s: float) -> PeerLink:
    link = PeerLink(source.ordinal, target.ordinal, not refusal, False, refusal)
    silent = [device for device in (source, target) if device.lost]
    if silent:
        return replace(link, problem=_silence(silent))
    try:
        with PeerTrial(source, target, timeout_s) as trial:
            wrong, compared = trial.verify()
            if wrong:
                return replace(link, problem=_corruption(source, target, wrong, compared, link.access))
            figures = trial.measure() if measure else (None, None)
    except SilentError as error:
        return replace(link, problem=_silence(error.devices))
    except DeviceError as error:
        return replace(link, problem=f"copies from {source.title} to {target.title} cannot be tried: {error}")
    return replace(link, verified=True, bandwidth_gb_s=figures[0], latency_us=figures[1])


def _silence(devices: Sequence[Device]) -> str:
    names = " and ".join(device.title for device in devices)
    return (
        f"a copy on {names} did not end in time; leave it out with CUDA_VISIBLE_DEVICES, and look for its "
        "errors in the kernel's log (dmesg | grep Xid)"
    )


def _corruption(source: Device, target: Device, wrong: int, compared: int, access: bool) -> str:
    what = (
        f"{wrong:,} of {compared:,} bytes were wrong after copies from {source.title} to {target.title}, and "
        "no call failed"
    )
    if not access:
        return f"{what}, though they went through the host; test its memory and update the driver"
    return (
        f"{what}; turn off PCIe ACS in the BIOS, and the IOMMU there or with the kernel's option iommu=pt: "
        "until then these copies have to go through the host's memory, which is slower"
    )
