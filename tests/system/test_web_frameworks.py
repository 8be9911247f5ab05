"""Web frameworks as their users set them up: every record arrives once, with its fields."""

from __future__ import annotations

import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import support
from harness.program import Program, free_port, records

pytestmark = pytest.mark.slow  # servers, some seconds each

DJANGO = """
    import logging, os, sys
    import logagg
    from django.conf import settings
    MIDDLEWARE = ["logagg.integrations.request_id.django_middleware"]
    made = logagg.logging_config("django", filename="app.log")
    settings.configure(
        DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF="app", SECRET_KEY="x",
        MIDDLEWARE=MIDDLEWARE, LOGGING=made if os.environ["WAY"] == "handler" else {})
    from django.core.asgi import get_asgi_application
    from django.core.management import execute_from_command_line
    from django.http import HttpResponse
    from django.urls import path
    def view(request):
        logging.getLogger("shop.pay").warning("paid", extra={"order": 7})
        if request.path == "/broken":
            raise ValueError("odd")
        return HttpResponse("ok")
    async def asynchronous(request):
        return view(request)
    urlpatterns = [path("fine", view), path("broken", asynchronous)]
    sys.modules["app"] = sys.modules["__main__"]
    if sys.argv[2:]:
        import uvicorn
        made = logagg.logging_config("uvicorn", filename="app.log")
        options = {"log_config": made} if os.environ["WAY"] == "handler" else {}
        app = get_asgi_application()
        uvicorn.run(app, port=int(sys.argv[1]), lifespan="off", **options)
    else:
        execute_from_command_line(["app", "runserver", "--noreload", sys.argv[1]])
"""

FLASK = """
    import logging, os, sys
    import logagg
    from flask import Flask
    if os.environ["WAY"] == "handler":
        logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
    app = Flask("shop.pay")
    @app.get("/<name>")
    def view(name):
        app.logger.warning("paid", extra={"order": 7})
        if name == "broken":
            raise ValueError("odd")
        return "ok"
    if __name__ == "__main__":
        app.run(port=int(sys.argv[1]))
"""

FASTAPI = """
    import logging, os, sys
    import logagg
    import uvicorn
    from fastapi import FastAPI
    from logagg.integrations.request_id import RequestIdMiddleware
    api = FastAPI()
    @api.get("/{name}")
    def view(name: str):
        logging.getLogger("shop.pay").warning("paid", extra={"order": 7})
        if name == "broken":
            raise ValueError("odd")
        return "ok"
    app = RequestIdMiddleware(api)
    if __name__ == "__main__":
        made = logagg.logging_config("uvicorn", filename="app.log")
        handler = os.environ["WAY"] == "handler"
        options = {"log_config": made} if handler else {}
        uvicorn.run(app, port=int(sys.argv[1]), lifespan="off", **options)
"""

FRAMEWORKS = {
    "Django": (DJANGO, ["app.py", "PORT"], "django.request", "django.server"),
    "Django, ASGI": (
        DJANGO,
        ["app.py", "PORT", "asgi"],
        "django.request",
        "uvicorn.access",
    ),
    "Flask": (FLASK, ["app.py", "PORT"], "shop.pay", "werkzeug"),
    "FastAPI": (FASTAPI, ["app.py", "PORT"], "uvicorn.error", "uvicorn.access"),
}
"""By name: the application, the command, the loggers of its exceptions and accesses."""


def get(port: int, path: str) -> tuple[int, str]:
    """The status and the request id of an answer, once the server gives one."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("X-Request-ID", f"id-of{path}")

    def answer() -> tuple[int, str] | None:
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.headers.get("X-Request-ID", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("X-Request-ID", "")
        except OSError:
            return None

    return support.wait_until(answer, 60, f"an answer to {path}")


@pytest.mark.parametrize("way", ["handler", "run"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_web_framework(tmp_path: Path, name: str, way: str) -> None:
    """The application's record, the access and the exception arrive once each."""
    application, words, of_exception, of_access = FRAMEWORKS[name]
    (tmp_path / "app.py").write_text(textwrap.dedent(application))
    port = free_port()
    words = [word.replace("PORT", str(port)) for word in words]
    if way == "run":
        words = ["-m", "logagg", "run", "-w", "1", "--sink", "file:app.log", *words]
    with Program(tmp_path, [sys.executable, *words], WAY=way) as program:
        statuses = [get(port, "/broken"), get(port, "/fine")]
        program.until(
            lambda found: [each for each in found if each.get("path") == "/fine"],
            "access record",
        )
    found = records(tmp_path)
    paid = [each for each in found if each.get("order") == 7]
    assert [(each["logger"], each["level"]) for each in paid] == 2 * [
        ("shop.pay", "warning")
    ], found
    access = [each for each in found if each["logger"] == of_access]
    assert [(each["path"], each["status"]) for each in access if "path" in each] == [
        ("/broken", 500),
        ("/fine", 200),
    ]
    (broken,) = [each for each in found if "exception" in each]
    assert (broken["logger"], broken["level"]) == (of_exception, "error")
    assert broken["exception"]["type"] == "ValueError"
    assert [status for status, _ in statuses] == [500, 200]
    if name != "Flask":
        assert paid[1]["request_id"] == statuses[1][1] == "id-of/fine"
        assert paid[0]["request_id"] == broken["request_id"] == "id-of/broken"


def test_a_request_id_that_is_not_safe_is_replaced() -> None:
    """It would be sent back as a header, and stand in every record."""
    from logagg.integrations.request_id import accepted

    assert accepted("a-1:b/c") == "a-1:b/c"
    for given in ("", "a b", "a\r\nSet-Cookie: x", "ä", "x" * 129):
        assert accepted(given).isalnum()
        assert len(accepted(given)) == 32
