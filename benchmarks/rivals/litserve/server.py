"""LitServe: an HTTP process, one worker process a route, batching, ZeroMQ between them.

`fast_queue` is what its documentation recommends for hundreds of requests a second. Small requests
are batched within 1 ms; with a timeout of 0 its loop would spin and take the core from the others.
Planners bring a batch themselves and are not batched further.
"""

import os

import litserve as ls
from model import ANSWERS, MAX_BATCH, PORT, load_model, plain

BATCH_TIMEOUT_S = 0.001


class Route(ls.LitAPI):
    """Without batching `predict` gets one body, else a list of them."""

    def setup(self, device):
        self.model = load_model()
        self.answers = ANSWERS[self.api_path.strip("/")]

    def decode_request(self, request):
        return request

    def predict(self, x):
        if self.max_batch_size == 1:
            return self.answers(self.model, [x])[0]
        return self.answers(self.model, x)

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return plain(output)


if __name__ == "__main__":
    batched = [
        Route(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path=path)
        for path in ("/predict", "/rollout", "/safety-check")
    ]
    server = ls.LitServer(
        [*batched, Route(api_path="/plan")],
        accelerator="cpu",
        workers_per_device=1,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ[PORT]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
