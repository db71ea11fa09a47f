"""A Lambda service that has too much to do."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from infra.local.lambda_http import Handler, Server


class Throttle:
    """Stands in front of the Lambda service, and refuses the next `left` invocations as Lambda does, with 429."""

    def __init__(self, target: str) -> None:
        self.left = self.refused = 0
        parts = urlsplit(target)
        throttle = self

        class Front(Handler):
            def do_POST(self) -> None:
                body = self.body()
                if throttle.left > 0:
                    throttle.left -= 1
                    throttle.refused += 1
                    self.answer_json(429, {"errorType": "TooManyRequestsException", "errorMessage": "Rate Exceeded."})
                    return
                connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
                connection.request("POST", parts.path, body)
                answer = connection.getresponse()
                self.answer(answer.status, answer.read())
                connection.close()

        self.server = Server(Front)
