"""gunicorn's settings for samples/gunicorn_app.py: its log goes to logagg."""

import os

import logagg

logconfig_dict = logagg.logging_config(
    "gunicorn", filename=os.environ.get("LOG_FILE", "gunicorn.log")
)
