"""gunicorn's settings for samples/gunicorn_app.py: its log goes to logagg."""

import os

logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "logagg": {
            "class": "logagg.Handler",
            "filename": os.environ.get("LOG_FILE", "gunicorn.log"),
        }
    },
    "root": {"level": "INFO", "handlers": ["logagg"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "propagate": True, "handlers": []},
        "gunicorn.access": {"level": "INFO", "propagate": True, "handlers": []},
    },
}
