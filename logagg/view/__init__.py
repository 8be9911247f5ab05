"""Looking at the stream: filter, render, `logagg tail`, `stats` and `top`."""
