"""A model of Triton's Python backend: pictures by an engine, each answered when it is there.

The backend hands requests over in `execute`, which returns at once; the engine queues them, gives them lanes
by the load, and keeps their deadlines. Its event loop has a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

import driffusion_trt as dt

_LOOK_S = 0.05  # how often it is looked whether a client has left
_DRAIN_S = 60.0
_MOST_STEPS, _MOST_CHARACTERS = 100, 1000  # what one request may ask for


class TritonPythonModel:
    """See https://github.com/triton-inference-server/python_backend for what calls this."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        model = parameters.get("model", {}).get("string_value", "demo")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._engine = dt.Engine.load(model)
        self._in_loop(self._engine.__aenter__()).result()

    def execute(self, requests: list) -> None:
        for request in requests:
            # What a request brings is read here: only its sender may be kept for later.
            wanted = {
                name.lower(): tensor.as_numpy().flat[0]
                for name in ("PROMPT", "SEED", "STEPS", "DEADLINE_MS")
                if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
            }
            self._in_loop(self._answer(wanted, request.get_response_sender()))

    def finalize(self) -> None:
        """Finish what was taken, then close the engine and its loop."""
        self._in_loop(self._engine.drain(_DRAIN_S)).result()
        self._in_loop(self._engine.__aexit__(None, None, None)).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _answer(self, wanted: dict, sender) -> None:
        codes = pb_utils.TritonError
        try:
            try:
                ticket = await self._ticket(wanted)
            except dt.InputError as error:  # once it was taken its sender has no part in what fails
                response = _failed(str(error), codes.INVALID_ARG)
            else:
                image = await self._picture(ticket, sender)
                response = pb_utils.InferenceResponse([pb_utils.Tensor("IMAGE", image)])
        except dt.CancelledError as error:
            response = _failed(str(error), codes.CANCELLED)
        except (dt.RefusedError, dt.NoDeviceError) as error:
            response = _failed(str(error), codes.UNAVAILABLE)
        except Exception:  # a request without an answer would wait for ever
            logging.getLogger(__name__).exception("a request failed")
            response = _failed("the picture could not be made; the log has the reason", codes.INTERNAL)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _ticket(self, wanted: dict):
        settings = {name: int(wanted[name]) for name in ("seed", "steps") if name in wanted}
        deadline = float(wanted["deadline_ms"]) if "deadline_ms" in wanted else None
        prompt = wanted["prompt"].decode("utf-8", "replace")
        if settings.get("steps", 0) > _MOST_STEPS or len(prompt) > _MOST_CHARACTERS:
            raise dt.InputError(f"at most {_MOST_STEPS} steps, and {_MOST_CHARACTERS} characters of prompt")
        return await self._engine.submit(prompt, deadline_ms=deadline, **settings)

    async def _picture(self, ticket, sender) -> np.ndarray:
        result = asyncio.ensure_future(ticket.result())
        while not (await asyncio.wait([result], timeout=_LOOK_S))[0]:
            if sender.is_cancelled():
                ticket.cancel()
        return np.asarray((await result).images[0].convert("RGB"))


def _failed(why: str, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(why, code))
