"""A model of Triton's Python backend: pictures by an engine, each answered when it is there.

The backend hands requests over in `execute`, which returns at once; the engine queues them, gives them lanes
by the load, and keeps their deadlines. Its event loop has a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

import driffusion_trt as dt

_LOOK_S = 0.05  # how often it is looked whether a client has left
_DRAIN_S = 60.0


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
            image = await self._picture(wanted, sender)
            response = pb_utils.InferenceResponse([pb_utils.Tensor("IMAGE", image)])
        except dt.InputError as error:
            response = _failed(error, codes.INVALID_ARG)
        except dt.CancelledError as error:
            response = _failed(error, codes.CANCELLED)
        except (dt.RefusedError, dt.LaneError) as error:
            response = _failed(error, codes.UNAVAILABLE)
        except Exception as error:  # a request without an answer would wait for ever
            response = _failed(error, codes.INTERNAL)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _picture(self, wanted: dict, sender) -> np.ndarray:
        settings = {name: int(wanted[name]) for name in ("seed", "steps") if name in wanted}
        deadline = float(wanted["deadline_ms"]) if "deadline_ms" in wanted else None
        prompt = wanted["prompt"].decode("utf-8", "replace")
        ticket = await self._engine.submit(prompt, deadline_ms=deadline, **settings)
        result = asyncio.ensure_future(ticket.result())
        while not (await asyncio.wait([result], timeout=_LOOK_S))[0]:
            if sender.is_cancelled():
                ticket.cancel()
        return np.asarray((await result).images[0].convert("RGB"))


def _failed(error: Exception, code: int):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
