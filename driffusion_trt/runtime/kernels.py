"""The kernels of the GPU lanes, ready to be launched: arguments are packed once, a launch is one driver call.

A *message* is what one peer copy takes to a lane, so that draft and timestep travel together and a
lane's CUDA graph never changes:

    byte 0      float32 timesteps of the message's drafts, MESSAGE_TIMESTEPS at most
    byte 248    float32 guidance scale
    byte 252    int32 number of the round, for the finite check
    byte 256    the drafts, float32 (drafts, pictures, elements), one after another
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError
from . import _arguments as packed
from ._arguments import Dtype, Source, Target
from ._images import find_kernels
from ._resources import Function, Module, Stream

__all__ = [
    "MESSAGE_GUIDANCE_OFFSET",
    "MESSAGE_HEADER_BYTES",
    "MESSAGE_ROUND_OFFSET",
    "MESSAGE_TIMESTEPS",
    "Dtype",
    "Kernels",
    "Launch",
    "Source",
    "Target",
    "find_kernels",
    "gram_partials_bytes",
    "message_bytes",
]

MESSAGE_HEADER_BYTES, MESSAGE_TIMESTEPS = 256, 32
MESSAGE_GUIDANCE_OFFSET, MESSAGE_ROUND_OFFSET = 248, 252
_BLOCK = 128
_BLOCKS_MOST = 8192  # threads go round after that; a picture of 4 million elements has as many


def message_bytes(drafts: int, pictures: int, elements: int) -> int:
    """Size of a message with `drafts` states of `pictures` pictures of `elements` elements."""
    if not 1 <= drafts <= MESSAGE_TIMESTEPS:
        raise InputError(f"a message holds 1 to {MESSAGE_TIMESTEPS} drafts, not {drafts}")
    return MESSAGE_HEADER_BYTES + 4 * drafts * pictures * elements


def gram_partials_bytes(batch: int, rows: int) -> int:
    """Size of the scratch memory that `Kernels.gram` needs."""
    return 4 * batch * rows * (rows + 1) * packed.STRANDS


class Launch:
    """A launch whose arguments are packed; calling it is one driver call, as often as wanted.

    `arguments` may be changed between calls: each call, or the capture of a graph, copies them.
    """

    __slots__ = ("_block", "_function", "_grid", "_parameters", "_pointer", "arguments")

    def __init__(
        self,
        function: Function,
        arguments: ctypes.Structure,
        items: int,
        batch: int = 1,
        block: int = _BLOCK,
    ) -> None:
        self.arguments: Any = arguments
        self._function = function
        blocks = max(1, min(-(-items // block), _BLOCKS_MOST))
        self._grid, self._block = (blocks, max(1, min(batch, 65535)), 1), (block, 1, 1)
        self._parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._pointer = ctypes.addressof(self._parameters)

    def __call__(self, stream: Stream) -> None:
        self._function.launch(self._grid, self._block, stream, self._pointer)

    def write_to(self, address: int) -> None:
        """Another target, a multiple of 16, for one of `Kernels.linear` with one row."""
        self.arguments.targets[0] = address

    def guide(self, guidance_scale: float) -> None:
        """Another guidance scale for one of `Kernels.linear`."""
        self.arguments.forms.guidance = guidance_scale


class Kernels:
    """The kernels of one loaded module; what they are told about is memory that its device can reach.

    Sizes are in elements of one picture, pictures lie one after another. All methods raise
    InputError where the arguments do not fit; addresses are taken as they are.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self._linear = module.function("linear")
        self._gram_partial = module.function("gram_partial")
        self._gram_total = module.function("gram_total")
        self._nonfinite = module.function("nonfinite")
        self._to_pixels = module.function("to_pixels")
        self._keep = module.function("keep")
        self._fill_timestep = module.function("fill_timestep")

    def linear(
        self,
        sources: Sequence[Source],
        targets: Sequence[Target],
        coefficients: NDArray[np.float64],
        *,
        elements: int,
        batch: int = 1,
        coefficients_address: int = 0,
        guidance_scale: float = 1.0,
        round: int = 0,
    ) -> Launch:
        """targets[r] = Σ_c coefficients[r, c] · sources[c], to the bit what `Table.apply` gives.

        Drafts, refinement, input scaling, guidance and conversion are all this. Each source is
        read once and each target written once. A target may be a source of the same address and
        dtype, and must not overlap one in another way.

        Args:
            coefficients: float64 (rows, columns), or (batch, rows, columns) where every picture
                has its own: the device then reads their float32 values at `coefficients_address`,
                and those given here say which of them are terms.
            guidance_scale: g of the sources that are guided, and what the headers of the targets'
                messages say; `Launch.guide` changes both.
            round: what these headers say besides.
        """
        arguments = packed.LinearArguments()
        forms = arguments.forms
        packed.pack_forms(forms, sources, coefficients, elements, batch, coefficients_address, guidance_scale)
        packed.pack_targets(arguments, targets)
        if any(not 0 <= target.slot < MESSAGE_TIMESTEPS for target in targets):
            raise InputError(f"a message holds {MESSAGE_TIMESTEPS} timesteps, numbered from 0")
        tensors = [*_tensors(sources), *((target.address, target.dtype) for target in targets)]
        forms.aligned = packed.vectors_fit(tensors, forms.elements, forms.batch)
        arguments.round = round
        return Launch(self._linear, arguments, -(-forms.elements // 4), forms.batch)

    def scale(
        self, source: Source, targets: Sequence[Target], factor: float, *, elements: int, batch: int = 1
    ) -> Launch:
        """The source times a factor into every target: the network's input, once for each branch."""
        return self.linear(
            [source], targets, np.full((len(targets), 1), factor), elements=elements, batch=batch
        )

    def guide(
        self,
        unconditional: int,
        conditional: int,
        target: Target,
        message: int,
        *,
        elements: int,
        batch: int = 1,
        dtype: Dtype = "float32",
    ) -> Launch:
        """(c − u)·g + u, in the order of the CPU lanes (2207.12598), from two tensors of one dtype.

        g is what the message's header says when the kernel runs.
        """
        source = Source(unconditional, dtype, conditional)
        launch = self.linear([source], [target], np.ones((1, 1)), elements=elements, batch=batch)
        launch.arguments.forms.guidance_at = message + MESSAGE_GUIDANCE_OFFSET
        return launch

    def gram(
        self,
        sources: Sequence[Source],
        coefficients: NDArray[np.float64],
        *,
        partials: int,
        target: int,
        elements: int,
        batch: int = 1,
        coefficients_address: int = 0,
        guidance_scale: float = 1.0,
    ) -> tuple[Launch, Launch]:
        """Inner products of up to 4 rows with one another, per picture: two launches, in that order.

        Args:
            coefficients: as for `linear`.
            partials: address of `gram_partials_bytes(batch, rows)` bytes of scratch memory.
            target: address of the float64 (batch, rows, rows) result, on the device or pinned.
        """
        rows = coefficients.shape[-2]
        if rows > packed.GRAM_ROWS:
            raise InputError(f"{rows} rows are multiplied; {packed.GRAM_ROWS} is the most")
        shared = packed.Forms()
        # Never merged into one picture: the sums are kept apart.
        packed.pack_forms(
            shared, sources, coefficients, elements, batch, coefficients_address, guidance_scale
        )
        shared.elements, shared.batch = elements, batch
        shared.aligned = packed.vectors_fit(_tensors(sources), elements, batch)
        partial = packed.GramPartialArguments(shared, partials)
        total = packed.GramTotalArguments(partials, target, batch, rows)
        # Blocks of one warp: a thousand threads are then spread over 32 multiprocessors.
        return (
            Launch(self._gram_partial, partial, packed.STRANDS, batch, block=32),
            Launch(self._gram_total, total, batch * rows * (rows + 1) // 2, block=32),
        )

    def nonfinite(
        self,
        address: int,
        flags: int,
        *,
        elements: int,
        batch: int = 1,
        dtype: Dtype = "float32",
        mark: int = 0,
    ) -> Launch:
        """Set the int32 flag of each picture that holds an infinity or NaN, where it is still 0.

        mark: address of the int32 to set it to (a message's round), or 0 to set it to 1. The
        flags must be cleared beforehand; they may be in pinned memory.
        """
        aligned = packed.vectors_fit([(address, dtype)], elements, batch)
        arguments = packed.NonfiniteArguments(
            address, flags, mark, elements, batch, packed.kind_of(dtype), aligned
        )
        return Launch(self._nonfinite, arguments, -(-elements // 4), batch)

    def to_pixels(
        self,
        decoded: int,
        pixels: int,
        *,
        height: int,
        width: int,
        batch: int = 1,
        dtype: Dtype = "float32",
    ) -> Launch:
        """Decoded pictures (B, 3, H, W) in [−1, 1] to uint8 (B, H, W, 3), as `pictures.to_images` does it."""
        plane = height * width
        # Channels are planes too, so that more than one must begin where a vector may.
        aligned = packed.vectors_fit([(decoded, dtype)], plane, 3 * batch) and pixels % 4 == 0
        arguments = packed.ToPixelsArguments(decoded, pixels, plane, batch, packed.kind_of(dtype), aligned)
        return Launch(self._to_pixels, arguments, -(-plane // 4), batch)

    def keep(
        self,
        targets: Sequence[int],
        levels: Sequence[tuple[float, float]],
        *,
        latents: int,
        noise: int,
        repaint: int,
        elements: int,
    ) -> Launch:
        """targets[r] = a·latents + s·noise where repaint is 0, to the bit what `Known.into` gives.

        Args:
            targets: addresses; like all here they are of float32.
            levels: a and s of each target.
            elements: of all pictures together.
        """
        rows = len(targets)
        if rows > packed.MAX_ROWS or len(levels) != rows:
            raise InputError(
                f"{rows} targets and {len(levels)} levels; {packed.MAX_ROWS} of both is the most"
            )
        arguments = packed.KeepArguments()
        arguments.targets[:rows] = targets
        arguments.a[:rows], arguments.s[:rows] = [a for a, _ in levels], [s for _, s in levels]
        arguments.latents, arguments.noise, arguments.repaint = latents, noise, repaint
        arguments.elements, arguments.rows = elements, rows
        tensors: list[tuple[int, Dtype]] = [(at, "float32") for at in (*targets, latents, noise, repaint)]
        arguments.aligned = packed.vectors_fit(tensors, elements, 1)
        return Launch(self._keep, arguments, -(-elements // 4))

    def fill_timestep(
        self, message: int, timesteps: int, *, drafts: int = 1, pictures: int = 1, branches: int = 1
    ) -> Launch:
        """A message's timesteps into an engine's input, float32 (branches, drafts, pictures) in one row."""
        message_bytes(drafts, pictures, 0)
        arguments = packed.FillTimestepArguments(message, timesteps, branches, drafts, pictures)
        return Launch(self._fill_timestep, arguments, branches * drafts * pictures)


def _tensors(sources: Sequence[Source]) -> list[tuple[int, Dtype]]:
    """Every address that is read, with its dtype."""
    halves = [(source.conditional, source.dtype) for source in sources if source.conditional]
    return [(source.address, source.dtype) for source in sources] + halves
